"""One process at a time in a run's folder."""

import errno
import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only


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


HELD: dict[Path, int] = {}  # .lock file -> the process that holds it; a fork has its parent's entries
INHERITED = "RUN_LOCK"  # environment variable: the .lock file that the process which started this one holds for it


@contextmanager
def sole_run(folder: Path, waits: bool) -> Iterator[None]:
    """Held by the one process that trains in `folder`. It may enter again; its other ranks pass, and so does a process
    that it starts with the environment `inherited`.

    A POSIX record lock, which the kernel drops with its process however that ends, and which data loader workers,
    that outlive a killed process by seconds, do not inherit (they would a flock).

    Args:
        folder: exists.
        waits: for the other process to end, instead of the error.

    Raises:
        ValueError: another process is at work there, with its number and host.
    """
    path = folder.resolve() / ".lock"
    is_inherited = os.environ.get(INHERITED) == str(path)
    if getattr(rank_zero_only, "rank", None) or HELD.get(path) == os.getpid() or is_inherited:
        yield  # not opened again: any close of a record lock's file frees it
        return
    with open(path, "a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            file.seek(0)
            other = f"{folder}: {file.read().strip() or 'another process'} is training there"
            if not waits:
                raise ValueError(f"{other}: wait for it or stop it, or choose another --run-dir") from None
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


def inherited(folder: Path) -> dict[str, str]:
    """Environment of a process that is to train in `folder` on behalf of this one, which may hold its lock."""
    path = folder.resolve() / ".lock"
    return {INHERITED: str(path)} if HELD.get(path) == os.getpid() else {}
