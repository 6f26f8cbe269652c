"""Files of torch.save are zip archives, whose checksums torch writes but never compares."""

import zipfile
from pathlib import Path


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
