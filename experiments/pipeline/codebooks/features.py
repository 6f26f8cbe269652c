"""Features on disk, read and written in pieces: memory follows the rows that are asked for, never N.

Plain reads and writes, no memory map: mapped pages count as the process's memory, and a full disk would kill a process
that writes to a map instead of raising an error.

Shapes: N features of C channels in all.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_modules.archives import readable
from lightning_modules.checks import require

FEWER = ", or use fewer images (model.quantizer.source.num_images)"  # advice where the disk is too small


class Features:
    """The finished features of a folder: features.npy (N, C) float32 and labels.npy (N,) int64.

    Raises ValueError that names the file when it is missing, cut off, or not what it should be.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "features.npy"
        array, labels = open_array(self.path, np.float32, 2), open_array(folder / "labels.npy", np.int64, 1)
        sizes = f"{len(array)} features but {len(labels)} labels"
        require(len(array) == len(labels), f"{folder}: {sizes}; delete the folder")
        self.shape: tuple[int, int] = array.shape
        self.offset: int = array.offset

    def __len__(self) -> int:
        return self.shape[0]

    def labels(self) -> np.ndarray:
        return np.load(self.path.with_name("labels.npy"))  # (N,)

    def rows(self, indices: np.ndarray) -> Tensor:
        """Rows (n, C) at `indices` (n,), in their order; read in the file's order, neighbours together."""
        order, row_bytes = np.argsort(indices, kind="stable"), self.shape[1] * 4
        ordered = indices[order]
        values = np.empty((len(indices), self.shape[1]), np.float32)
        starts = np.flatnonzero(np.diff(ordered, prepend=-2) != 1)
        with open(self.path, "rb") as file:
            for start, stop in pairwise([*starts, len(ordered)]):
                file.seek(self.offset + int(ordered[start]) * row_bytes)
                if file.readinto(values[start:stop].data) != (stop - start) * row_bytes:
                    raise ValueError(f"{self.path}: cut off while it was read; delete {self.path.parent}")
        out = np.empty_like(values)
        out[order] = values
        return torch.from_numpy(out)


def open_array(path: Path, dtype: type, ndim: int) -> np.memmap:
    """A whole .npy file, for its shape and offset. Raises ValueError that names the file."""
    with readable(path, f"; delete {path.parent} and it is made again", "damaged or cut off"):
        array = np.load(path, mmap_mode="r")
        size = path.stat().st_size
        is_whole = size == array.offset + array.nbytes and array.dtype == dtype and array.ndim == ndim
        require(is_whole, f"{array.dtype} {array.shape} in {size} bytes")
    return array
