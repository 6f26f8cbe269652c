"""Arrays that are slow to make, kept in one .npz and made again when their source changes."""

import hashlib
import os
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def fingerprint(paths: list[str], root: Path) -> str:
    """Hash of every file's place below ``root``, size and modification time."""
    digest = hashlib.sha256()
    skip = len(str(root))
    for path in paths:
        info = os.stat(path)
        digest.update(os.fsencode(f"{path[skip:]} {info.st_size} {info.st_mtime_ns}\n"))  # a name may be no UTF-8
    return digest.hexdigest()


def _candidates(folder: Path, name: str) -> list[Path]:
    """Where a cache file may be, best first: ``folder``, the user's cache, the temporary folder."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # these two serve several folders
    shared = Path("vq-image-modeling") / place / name
    return [folder / name, user_cache / shared, Path(tempfile.gettempdir()) / shared]


def _read(path: Path, key: str) -> Arrays | None:
    """The arrays, or None if the file is missing, damaged or of another source."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if file["fingerprint"].item() != key:
                return None
            return {name: file[name] for name in file.files if name != "fingerprint"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays, key: str) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "wb") as file:
            np.savez(file, fingerprint=np.array(key), **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def cached(folder: Path, name: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """``build()``, or what it returned for this key before.

    Args:
        folder: where to keep the file; the user's cache folder serves where this one cannot be written.
        name: of the file, ending in .npz.
        key: the source's fingerprint; a file with another key is made again, as is a damaged one.
        build: makes the arrays.
    """
    candidates = _candidates(folder, name)
    for path in candidates:
        if (arrays := _read(path, key)) is not None:
            return arrays
    arrays = build()
    for path in candidates:
        try:
            _write(path, arrays, key)
            return arrays
        except OSError:  # read-only or full: try the next
            continue
    warnings.warn(f"no cache could be written ({', '.join(map(str, candidates))}): every run will decode", stacklevel=2)
    return arrays
