"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from experiments.stop import Stopped, StopSignals


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that name what to do (ValueError, missing files, a full disk, a non-finite loss) into one line
    and exit status 1, SIGINT and SIGTERM into one line and status 130 and 143; anything else is a defect and keeps its
    traceback."""
    try:
        with StopSignals():
            yield
    except Stopped as stop:
        saved = f": {stop.saved}" if stop.saved else ""
        print(f"\nstopped by {stop.name}{saved}; the same command continues from there", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, FloatingPointError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            fail(f"{error.filename or 'a file'} {DISK_FULL}")
        fail(str(error))
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # how torch.save reports a write that failed
            raise
        fail(f"a file {DISK_FULL}")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL = "could not be written, the disk is full: free space and run the same command again; what is saved is kept"


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
