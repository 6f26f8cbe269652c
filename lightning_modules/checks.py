"""What a config's `check()` is written with: a ValueError whose message begins with the key, relative to its section.

The walker of experiments/config puts the path of the section before it.
"""

from typing import Any


def require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


def one_of(config: Any, name: str, known: Any) -> None:
    value = getattr(config, name)
    require(value in known, f"{name}='{value}' is none of {', '.join(known)}")


def at_least_one(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value >= 1, f"{name}={value} must be at least 1")


def not_negative(config: Any, path: str = "") -> None:
    """All numbers of the config, whose keys come after `path`."""
    for name, value in vars(config).items():
        require(not isinstance(value, (int, float)) or value >= 0, f"{path}{name}={value} must not be negative")


def check_sizes(config: Any) -> None:
    """Sizes of a network are at least 1; `head_dim` 0 and lists of dims that are empty leave it to the size."""
    for name, value in vars(config).items():
        for item in value if isinstance(value, list) else [value]:
            is_size = isinstance(item, int) and not isinstance(item, bool) and not (name == "head_dim" and item == 0)
            require(not is_size or item >= 1, f"{name}={value} must be at least 1")
        require(name != "channel_multipliers" or value, f"{name}={value} must hold a number for each resolution")
        require(name != "dropout" or 0 <= value < 1, f"{name}={value} must be in [0, 1)")
