"""Helpers for a config's `check()`: each raises a ValueError that begins with the key, relative to its section.

The walker of experiments/config puts the path of the section before the message.
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def require(ok: bool, message: str) -> None:
    """Raises ValueError with `message` unless `ok`."""
    if not ok:
        raise ValueError(message)


def hint(word: str, words: Iterable[str]) -> str:
    """ "; did you mean 'x'?" of the nearest of `words`; "" when none is near."""
    near = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean '{near[0]}'?" if near else ""


def one_of(config: Any, name: str, choices: Any) -> None:
    """Raises ValueError unless the option `name` is one of the words `choices`."""
    value = getattr(config, name)
    require(value in choices, f"{name}='{value}' is none of {', '.join(choices)}{hint(str(value), choices)}")


def at_least_one(config: Any, *names: str) -> None:
    """Raises ValueError for the first of these options that is below 1."""
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name}={value} must be at least 1")


def not_negative(config: Any, path: str = "") -> None:
    """Raises ValueError for the first number of the config that is negative; its key is put after `path`."""
    for name, value in vars(config).items():
        require(not isinstance(value, (int, float)) or value >= 0, f"{path}{name}={value} must not be negative")


def check_sizes(config: Any) -> None:
    """Raises ValueError for a network's size below 1; `head_dim` 0 and an empty list of dims mean "as `size` says"."""
    for name, value in vars(config).items():
        for item in value if isinstance(value, list) else [value]:
            is_size = isinstance(item, int) and not isinstance(item, bool) and not (name == "head_dim" and item == 0)
            require(not is_size or item >= 1, f"{name}={value} must be at least 1")
        require(name != "channel_multipliers" or value, f"{name}={value} must hold a number for each resolution")
        require(name != "dropout" or 0 <= value < 1, f"{name}={value} must be in [0, 1)")


def home_expanded(path: str | Path) -> str:
    """The path with a leading ~ replaced by the home folder. Raises ValueError where that is not known."""
    first, _, rest = str(path).partition("/")
    if first != "~":
        return str(path)
    try:
        return str(Path.home() / rest)
    except RuntimeError:
        raise ValueError(f"{path}: no home folder is known here (HOME is not set): write the whole path") from None
