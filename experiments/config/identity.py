"""The identity of an experiment, everything in its configuration that decides numbers, and the digest that names it.

Every key counts, also at its default, so that moving a default into another file renames nothing. Left out are fields
that are marked in their dataclass (`lightning_modules/options.py`): `no_identity` always, `neutral` and `place` at
their default. The contents of the images count as well, beside the configuration (`pipeline/inputs.py`). See
docs/identity.md.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import PurePath
from typing import Any

from experiments.config.values import flatten
from lightning_modules.options import NONE, PLACE, mark_of

LENGTH = 12  # hex digits of a digest


class Place(str):
    """A path that is compared, and hashed, by its last part."""

    def __new__(cls, path: str) -> "Place":
        return super().__new__(cls, PurePath(path).name)


def entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(flat key, value, neutral value or MISSING) of a dataclass and those in it, without the `no_identity` ones."""
    for entry in fields(config):
        key, value, mark = f"{prefix}{entry.name}", getattr(config, entry.name), mark_of(entry)
        if mark == NONE:
            continue
        if is_dataclass(value):
            yield from entries(value, f"{key}.")
        elif value is not None or entry.name != "upstream":
            yield key, Place(value) if mark == PLACE else value, MISSING if mark == "" else entry.default


def identity(config: Any) -> dict[str, Any]:
    """The flat keys that decide numbers, of an experiment with all that it stands on, or of a part of one."""
    return {key: value for key, value, at in entries(config) if at is MISSING or value != at}


def digest(experiment: Any, without: tuple[str, ...] = ()) -> str:
    """12 hex digits that name an experiment: of its own keys, and of the digest of what it stands on.

    `without`: beginnings of keys that are left out.
    """
    upstream = getattr(experiment, "upstream", None)
    own = {key: value for key, value in identity(experiment).items() if not key.startswith(("upstream.", *without))}
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
        before = Place(before) if isinstance(value, Place) else before
        if before is MISSING:
            lines.append(f"{key} not set, here {value}")
        elif before != value:
            lines.append(f"{key}={before}, here {value}")
    others = given.keys() - here.keys() - flatten(plain).keys()
    return lines + [f"{key}={given[key]}, here not set" for key in sorted(others)]
