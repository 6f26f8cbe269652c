"""What defines a family of checkpoints: its signature, its model, and where it keeps each weight of this suite."""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_modules.archives import readable
from lightning_modules.tokenizer import TokenizerConfig

Tensors = dict[str, Tensor]


@dataclass
class Options:
    """What weights do not tell. None: the family's default (or, where the weights do tell, what they say)."""

    image_size: int | None = None
    head_dim: int | None = None
    folder: Path | None = None  # of the file, where its config.json may be

    def beside(self) -> dict[str, Any]:
        """What config.json beside the file holds; {} without one. Raises ValueError when it is damaged."""
        if self.folder is None or not (path := self.folder / "config.json").is_file():
            return {}
        with readable(path):
            content = dict(json.loads(path.read_text()))
        return content


class Source:
    """A foreign state dict that is asked by key. A key that is not there, or is no such array, is a ValueError."""

    def __init__(self, tensors: Tensors, origin: str, family: str) -> None:
        self.tensors, self.origin, self.family = tensors, origin, family

    def shape(self, key: str, ndim: int) -> tuple[int, ...]:
        if key not in self.tensors:
            some = ", ".join(list(self.tensors)[:3])
            raise ValueError(
                f"{self.origin}: no key '{key}', which every {self.family} checkpoint has "
                f"(its {len(self.tensors)} keys begin with {some})"
            )
        shape = tuple(self.tensors[key].shape)
        if len(shape) != ndim or 0 in shape:
            raise ValueError(f"{self.origin}: '{key}' has shape {shape}, not {ndim} dimensions above zero")
        return shape

    def codebook(self, key: str = "quantize.embedding.weight") -> dict[str, int]:
        """Its sizes as keys of a model."""
        return dict(zip(("codebook_size", "code_dim"), self.shape(key, 2), strict=True))

    def has(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.tensors)

    def count(self, prefix: str) -> int:
        """How many different numbers follow `prefix` in the keys."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
        return len({match[1] for key in self.tensors if (match := pattern.match(key))})


class Weight(NamedTuple):
    """One tensor of this suite's module: `make` of the source's tensors `keys`; without keys, a constant."""

    keys: tuple[str, ...]
    make: Callable[..., Tensor]


def some(keys: Iterable[str]) -> str:
    """At most four keys, quoted, and how many more there are."""
    first, rest = list(keys)[:4], list(keys)[4:]
    return ", ".join(f"'{key}'" for key in first) + (f" and {len(rest)} more" if rest else "")


def same(key: str) -> Weight:
    return Weight((key,), lambda tensor: tensor)


def as_it_is(tensors: Tensors, origin: str) -> tuple[Tensors, str]:
    return tensors, ""


TRUE = Weight((), lambda: torch.tensor(True))  # a flag of the module, such as "the table is filled"


@dataclass(frozen=True)
class Family:
    """One public code base.

    signature: prefixes of keys; a state dict of this family, and of no other, has all of them.
    wrappers: top-level keys of a checkpoint file that may hold the state dict; the first that is there is taken.
    dropped: prefixes of keys that are deliberately not imported, and why.
    infer: the `data` and `model` sections of the experiment, read from the shapes.
    weight: the source of one key of the module; None for a key that the family does not have.
    mark: a prefix of keys that tells its files from another family's of the same signature, where they have it.
    adapt: (tensors, name of the file) -> the tensors as `infer` and `weight` name them, and what was done, in words.
    """

    signature: tuple[str, ...]
    wrappers: tuple[str, ...]
    dropped: dict[str, str]
    infer: Callable[[Source, Options], dict[str, Any]]
    weight: Callable[[str, TokenizerConfig], Weight | None]
    mark: str = ""
    adapt: Callable[[Tensors, str], tuple[Tensors, str]] = as_it_is

    def fits(self, tensors: Tensors) -> bool:
        return all(any(key.startswith(prefix) for key in tensors) for prefix in self.signature)

    def prefixes(self, tensors: Tensors) -> list[str]:
        """What stands before the keys of this family, as DDP ("module.") and models that hold a tokenizer put it there:
        [""] in a plain file, [] in one of another family, several in one that holds several tokenizers."""
        first = re.compile(rf"(.*?\.|){re.escape(self.signature[0])}")
        found = {match[1] for key in tensors if (match := first.match(key))}
        return [prefix for prefix in sorted(found) if self.fits(below(tensors, prefix))]


COMPILED = "_orig_mod."  # torch.compile puts it anywhere into a key


def below(tensors: Tensors, prefix: str) -> Tensors:
    """The entries whose keys begin with `prefix`, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}


def uncompiled(tensors: Tensors) -> Tensors:
    return {key.replace(COMPILED, ""): tensor for key, tensor in tensors.items()}
