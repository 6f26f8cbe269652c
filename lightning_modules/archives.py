"""Files of torch.save: zip archives whose checksums torch writes and does not read."""

import zipfile
from pathlib import Path


def check_sums(path: str | Path) -> None:
    """Reads the whole file. Raises ValueError: a byte of it has changed; zipfile.BadZipFile: its structure is broken.

    Says nothing about files that are no zip archive: torch.load refuses those that it cannot read.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"damaged: the checksum of its part {damaged} is wrong")
