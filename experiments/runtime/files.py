"""Files that are whole or absent, also after a kill or on a full disk, and made by one process at a time."""

import errno
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

from experiments.runtime.errors import is_main
from lightning_modules.checks import require

GB = 1e9
PARTIAL = ".partial"  # what is written, until it is whole
LOCK = ".lock"  # of a folder
HELD: dict[Path, int] = {}  # lock file -> the process that holds it; a fork has its parent's entries
INHERITED = "VQ_LOCK_HELD"  # environment variable: the lock file that the process which started this one holds for it


@contextmanager
def replacing(path: Path, concurrent_writers: bool = False) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the context.

    Written beside `path` and renamed, never moved from another file system: that would be a copy, which a kill leaves
    half done. Without concurrent writers a kill may leave PATH.partial, which the next writer overwrites. An error
    leaves the old file. Raises OSError that names `path` when it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}" if concurrent_writers else path.name + PARTIAL)
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)) and (cause := os_error(error)):
            raise OSError(cause.errno, cause.strerror, str(path)) from None
        raise


def write_json(path: Path, content: Any) -> None:
    """Writes atomically: a reader sees the old file or the whole new one, also after a crash or on a full disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, concurrent_writers=True) as file:
        file.write((json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def os_error(error: BaseException | None) -> OSError | None:
    """The system's error that caused `error`: torch.save covers it with a RuntimeError of its own."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error


def require_writable(folder: Path) -> None:
    """Makes `folder`. Raises OSError that names it and says what to do when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise PermissionError(
            f"{folder}: cannot be written ({error.strerror}): choose another --run-dir or runtime.output_dir"
        ) from None


def require_space(folder: Path, needed: int, what: str, advice: str = "") -> None:
    """Raises ValueError, `what` "needs" so many bytes, when the disk of `folder` has not `needed` bytes free."""
    if needed > (free := shutil.disk_usage(folder).free):
        raise ValueError(
            f"{folder}: {what} {needed:,} bytes ({needed / GB:.1f} GB) more, and the disk has {free:,} "
            f"({free / GB:.1f} GB) free: free some, choose another runtime.output_dir{advice}"
        )


def require_empty(folder: Path) -> None:
    """Raises ValueError unless `folder` is empty or not there: nothing is overwritten, and nothing stale is left."""
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    require(is_free, f"--out {folder}: is there already: choose another --out or delete it")


@contextmanager
def locked(path: Path, doing: str, waits: bool = True, advice: str = "wait for it or stop it") -> Iterator[None]:
    """A lock of one process, which writes its number into the file `path`; others wait for it, and say so.

    The process may enter again. Ranks but the first pass: they come after it (`main_first`); and so does a process that
    it starts with the environment `inherited`. A POSIX record lock, which the kernel drops with its
    process however that ends, and which data loader workers, that outlive a killed process by seconds, do not inherit
    (they would a flock).

    `path` is in a folder that is made if need be; FOLDER/.lock stands for the folder. `doing` is what the other process
    does, such as "is training there". Raises ValueError, with that process and `advice`, unless this one `waits`.
    """
    path = path.resolve()
    if not is_main() or HELD.get(path) == os.getpid() or os.environ.get(INHERITED) == str(path):
        yield  # not opened again: any close of a record lock's file frees it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            file.seek(0)
            other = f"{path.parent if path.name == LOCK else path}: {file.read().strip() or 'another process'} {doing}"
            if not waits:
                raise ValueError(f"{other}: {advice}") from None
            print(f"{other}: waiting for it", flush=True)
            fcntl.lockf(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        HELD[path] = os.getpid()
        try:
            yield
        finally:
            del HELD[path]


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock."""
    if not path.is_file():
        return False
    with open(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
    return False


def open_lock(path: Path) -> IO[str]:
    """The file, to read and append. Raises PermissionError that says what to do where it is another user's."""
    try:
        return open(path, "a+")
    except PermissionError:
        advice = "a folder that a group shares takes umask 002, and `chmod -R g+rwX` by the owner of what is there"
        raise PermissionError(f"{path}: may not be written: {advice}; or choose another runtime.output_dir") from None


def inherited(path: Path) -> dict[str, str]:
    """Environment of a process that is to enter `locked(path)` on behalf of this one, which may hold it."""
    path = path.resolve()
    return {INHERITED: str(path)} if HELD.get(path) == os.getpid() else {}
