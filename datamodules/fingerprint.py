"""Identifies the images of a split by a digest of the contents and relative paths of their files.

The digest of each file is kept (`datamodules/cache.py` says where) with the file's size and times. A file is not read
again while these stay the same, so that a later start costs one stat a file. Measured: docs/identity.md. Other contents
of the same size and times cannot be told, where the time of the last change of any kind, which no ordinary program sets
back, is the same as well: in a disk image that was made anew, or where files that were written in one tick of the clock
have changed places.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from datamodules.cache import Arrays, read, write

DIGEST_BYTES = 16  # of an image
SETTLED = 2_000_000_000  # ns: a file written less than this before it was read may change and keep its times
CHUNK = 256  # files that a thread reads at a time
MANY = 2e9  # bytes that take long enough to read to say so on the terminal


def fingerprint(paths: Sequence[str], root: Path, folder: Path, name: str) -> str:
    """32 hex digits that identify N files by their order, their paths below ``root`` and their contents.

    Args:
        paths: N files below ``root``.
        root: the folder of the split; its own path does not count.
        folder: where to keep the files' digests; the user's cache folder serves where this one cannot be written.
        name: of the file in ``folder``, ending in .npz.

    Raises:
        OSError: a file cannot be read.
    """
    skip = len(str(root))
    names = os.fsencode("\0".join([path[skip:] for path in paths]))  # a name may be no UTF-8
    stats = times_and_sizes(paths)  # (N, 3)
    digests, is_kept = kept_digests(read(folder, name), names, stats)
    if len(rest := np.flatnonzero(~is_kept)):
        if (size := int(stats[rest, 0].sum())) > MANY:
            print(f"{root}: {len(rest):,} images ({size / 1e9:,.0f} GB) are read once, to know them by", flush=True)
        start = time.time_ns()
        digests[rest] = read_digests([paths[i] for i in rest.tolist()])
        stats[rest[stats[rest, 1:].max(1) > start - SETTLED]] = -1
        write(folder, name, {"names": np.frombuffer(names, np.uint8), "stats": stats, "digests": digests})
    return hashlib.blake2b(names + b"\0" + digests.tobytes(), digest_size=DIGEST_BYTES).hexdigest()


def times_and_sizes(paths: Sequence[str]) -> np.ndarray:
    """(N, 3) int64: bytes, time of modification and of the last change of any kind in ns."""
    stats = np.empty((len(paths), 3), np.int64)
    for row, path in enumerate(paths):
        try:
            info = os.stat(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: a link to a file that is not there; delete it or put it right") from None
        stats[row] = info.st_size, info.st_mtime_ns, info.st_ctime_ns
    return stats


def kept_digests(kept: Arrays | None, names: bytes, stats: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Digests (N, 16) uint8, and which of them (N,) bool are kept from a file of the same name, size and times."""
    digests = np.zeros((len(stats), DIGEST_BYTES), np.uint8)
    is_kept = np.zeros(len(stats), bool)
    if kept is None or {"names", "stats", "digests"} - kept.keys():
        return digests, is_kept
    before = kept["names"].tobytes()
    if before == names:
        rows = at = np.arange(len(stats))
    else:
        place = {name: position for position, name in enumerate(before.split(b"\0"))}
        at = np.array([place.get(name, -1) for name in names.split(b"\0")])  # (N,) where a name was, -1 = nowhere
        rows = np.flatnonzero(at >= 0)
        at = at[rows]
    is_kept[rows] = (kept["stats"][at] == stats[rows]).all(1)
    digests[rows] = kept["digests"][at]
    return digests, is_kept


def read_digests(paths: Sequence[str]) -> np.ndarray:
    """Digests (n, 16) uint8 of the files' contents; a thread a core reads them."""

    def read_some(start: int) -> bytes:
        return b"".join(digest_of_file(path) for path in paths[start : start + CHUNK])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = b"".join(pool.map(read_some, range(0, len(paths), CHUNK)))
    return np.frombuffer(digests, np.uint8).reshape(len(paths), DIGEST_BYTES)


def digest_of_file(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return hashlib.blake2b(file.read(), digest_size=DIGEST_BYTES).digest()
