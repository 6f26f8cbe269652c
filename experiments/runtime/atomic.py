"""Files that are there whole or not at all, also after a kill or on a full disk."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".partial"  # what is written, until it is whole


@contextmanager
def replacing(path: Path, alone: bool = True) -> Iterator[BinaryIO]:
    """A file to write that becomes `path` at the end of the context, for this process `alone` or for many at once.

    Written beside `path` and renamed, never moved from another file system: that would be a copy, which a kill leaves
    half done. Alone, a kill may leave PATH.partial, which the next one overwrites. An error leaves what was there
    before. Raises OSError that names `path` when it cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL if alone else f".{path.name}.{uuid.uuid4().hex}")
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


def os_error(error: BaseException | None) -> OSError | None:
    """The system's error behind `error`: torch.save covers it with a RuntimeError of its own."""
    while error is not None and not (isinstance(error, OSError) and error.errno):
        error = error.__cause__ or error.__context__
    return error
