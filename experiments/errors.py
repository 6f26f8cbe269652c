"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that name what to do (ValueError, missing files, a full disk, a non-finite loss) into one line
    and exit status 1 (130 for an interrupt); anything else is a defect and keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, FloatingPointError) as error:
        is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        fail(DISK_FULL if is_full else str(error))
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # how torch.save reports a write that failed
            raise
        fail(DISK_FULL)


DISK_FULL = (
    "a file could not be written, the disk is full: free space and run the same command again; nothing finished is lost"
)


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
