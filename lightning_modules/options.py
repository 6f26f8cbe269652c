"""Marks of configuration fields: what a key means for the identity of a run (docs/identity.md)."""

from dataclasses import Field, field
from typing import Any

IDENTITY = "identity"  # the key of the marks in a field's metadata
NONE, NEUTRAL, PLACE = "none", "neutral", "place"


def no_identity(default: Any) -> Any:
    """A field that changes no number: runs that differ in it alone are the same run. A callable makes the default."""
    return marked(default, NONE)


def neutral(default: Any) -> Any:
    """A field that was added later: at its default it is left out of the digest, so finished runs keep their names.

    Its default must be what the code did before the field existed.
    """
    return marked(default, NEUTRAL)


def place(default: str = "") -> Any:
    """A `neutral` field that names a file or folder: its last part counts, so that moving it changes nothing.

    What the file holds counts by its contents, where it is at hand; the name tells rows of a table apart where not.
    """
    return marked(default, PLACE)


def marked(default: Any, mark: str) -> Any:
    if callable(default):
        return field(default_factory=default, metadata={IDENTITY: mark})
    return field(default=default, metadata={IDENTITY: mark})


def mark_of(entry: Field) -> str:
    """NONE, NEUTRAL, PLACE or "" of a dataclass field."""
    return entry.metadata.get(IDENTITY, "")
