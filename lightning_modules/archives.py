"""Files of weights that are whole: torch.save's are zip archives, whose checksums torch writes but never compares."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

DISCRIMINATOR = "discriminator."  # prefix of the weights that only a training needs


def check_sums(path: str | Path) -> None:
    """Compares the checksums of all parts of a zip archive, for which it reads the whole file.

    Passes files that are no zip archive: torch.load refuses those that it cannot read.

    Raises:
        ValueError: a byte of the file has changed.
        zipfile.BadZipFile: its structure is broken.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"damaged: the checksum of its part {damaged} is wrong")


@contextmanager
def readable(path: str | Path, advice: str = "", problem: str = "not readable") -> Iterator[None]:
    """A damaged or foreign file, of which libraries raise many kinds, is a ValueError: what is wrong, then `advice`.

    One that may not be read, as of another user in a shared folder, is a PermissionError.
    """
    try:
        yield
    except Exception as error:
        if Path(path).exists() and not os.access(path, os.R_OK):
            raise PermissionError(f"{path}: may not be read: ask its owner for the permission (chmod g+r)") from None
        reason = repr(error) if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise ValueError(f"{path}: {problem} ({reason.splitlines()[0]}){advice}") from None


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """12 hex digits of a state dict's names, shapes and values, the discriminator left out."""
    digits = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not name.startswith(DISCRIMINATOR):
            digits.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digits.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digits.hexdigest()[:12]
