"""What decides the numbers of an experiment, and nothing else: its identity, and the digest that names it.

Every key of the configuration counts, also at its default, so that a default that moves renames nothing. Left out are
the fields that are marked in their dataclass (`lightning_modules/options.py`): `no_identity` always, `neutral` at their
default. The images count by their contents (`datamodules/fingerprint.py`), which are not part of the configuration.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from experiments.config.values import flatten
from lightning_modules.options import NEUTRAL, NONE, mark_of

LENGTH = 12  # hex digits of a digest


def entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(flat key, value, neutral value or MISSING) of a dataclass and those in it, without the `no_identity` ones."""
    for entry in fields(config):
        key, value, mark = f"{prefix}{entry.name}", getattr(config, entry.name), mark_of(entry)
        if mark == NONE:
            continue
        if is_dataclass(value):
            yield from entries(value, f"{key}.")
        elif value is not None or entry.name != "upstream":
            yield key, value, entry.default if mark == NEUTRAL else MISSING


def identity(config: Any) -> dict[str, Any]:
    """The flat keys that decide numbers, of an experiment with all that it stands on, or of a part of one."""
    return {key: value for key, value, at in entries(config) if at is MISSING or value != at}


def digest(experiment: Any) -> str:
    """12 hex digits that name an experiment: of its own keys and of the digest of what it stands on."""
    upstream = getattr(experiment, "upstream", None)
    own = {key: value for key, value in identity(experiment).items() if not key.startswith("upstream.")}
    return digest_of(own | ({} if upstream is None else {"upstream": digest(upstream)}))


def digest_of(values: Any) -> str:
    """12 hex digits of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:LENGTH]


def differences(config: dict[str, Any], experiment: Any, plain: dict[str, Any]) -> list[str]:
    """ "data.batch_size=4, here 2": the keys that decide numbers and differ, with both values.

    `config` is nested, as a record or a checkpoint holds it; so is `plain`, all keys of `experiment`.
    """
    given, here = flatten(config), {key: (value, at) for key, value, at in entries(experiment)}
    lines = []
    for key, (value, at) in here.items():
        before = given.get(key, at)
        if before is MISSING:
            lines.append(f"{key} not set, here {value}")
        elif before != value:
            lines.append(f"{key}={before}, here {value}")
    others = given.keys() - here.keys() - flatten(plain).keys()
    return lines + [f"{key}={given[key]}, here not set" for key in sorted(others)]
