"""Arrays that are slow to make, kept in one .npz and made again when their source changes."""

import fcntl
import hashlib
import os
import tempfile
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def _candidates(folder: Path, name: str) -> list[Path]:
    """Where a cache file may be, best first: ``folder``, the user's cache, the user's part of the temporary folder."""
    bases = [Path(tempfile.gettempdir()) / f"vq-image-modeling-{os.getuid()}"]
    with suppress(RuntimeError):  # no HOME, and a user without a name: containers, batch systems
        bases.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vq-image-modeling")
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]  # these serve several folders
    return [folder / name, *(base / place / name for base in bases)]


def _read(path: Path) -> Arrays | None:
    """The arrays, or None if the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write(path: Path, arrays: Arrays) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(partial, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(folder: Path, name: str) -> Arrays | None:
    """The arrays that `write` kept last; None where there is no undamaged file. The folder may be read-only by now."""
    kept = [path for path in _candidates(folder, name) if path.is_file()]
    kept.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return next((arrays for path in kept if (arrays := _read(path)) is not None), None)


def write(folder: Path, name: str, arrays: Arrays) -> None:
    """Keeps the arrays in ``folder``, or where that cannot be written in the user's cache or the temporary folder."""
    candidates = _candidates(folder, name)
    for path in candidates:
        try:
            return _write(path, arrays)
        except OSError:  # read-only or full: try the next
            continue
    warnings.warn(f"no cache could be written ({', '.join(map(str, candidates))}): every run will decode", stacklevel=3)


def cached(folder: Path, name: str, key: str, build: Callable[[], Arrays]) -> Arrays:
    """Returns ``build()``, or the arrays that it gave for this key before.

    Args:
        folder: where to keep the file; the user's cache folder serves where this one cannot be written.
        name: of the file, ending in .npz.
        key: the source's fingerprint; a file with another key is made again, as is a damaged one.
        build: makes the arrays; called by one process, while others that want them wait.
    """
    if (arrays := _kept(folder, name, key)) is None:
        with _sole_builder(folder, name):
            if (arrays := _kept(folder, name, key)) is None:
                arrays = build()
                write(folder, name, arrays | {"fingerprint": np.array(key)})
    return arrays


def _kept(folder: Path, name: str, key: str) -> Arrays | None:
    """What `cached` has written for `key`; None where there is no such file."""
    for arrays in (_read(path) for path in _candidates(folder, name)):
        if arrays is not None and arrays.pop("fingerprint", np.array("")).item() == key:
            return arrays
    return None


@contextmanager
def _sole_builder(folder: Path, name: str) -> Iterator[None]:
    """Within this context no other process of this machine makes the file: the lock is on its folder, and leaves no
    file. Where no folder can be made or locked there is nothing to share."""
    with ExitStack() as stack:
        for path in _candidates(folder, name):
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = os.open(path.parent, os.O_RDONLY)
                stack.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX)
                break
        yield
