"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.pytorch.utilities import rank_zero_only

from experiments.stop import Stopped, StopSignals


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that name what to do (ValueError, missing files, a full disk, a non-finite loss) into one line
    and exit status 1, SIGINT and SIGTERM into one line and status 130 and 143; anything else is a defect and keeps its
    traceback.

    Of several processes rank 0 speaks; another one only of what it alone may have met, such as a full disk.
    """
    try:
        with StopSignals():
            yield
    except Stopped as stop:
        saved = f": {stop.saved}" if stop.saved else ""
        if is_first():
            print(f"\nstopped by {stop.name}{saved}; the same command continues from there", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        if is_first():
            print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, FloatingPointError) as error:
        if not is_first() and not isinstance(error, OSError):  # all ranks find the same
            sys.exit(1)
        is_full = isinstance(error, OSError) and error.errno in FULL
        fail(f"{error.filename or 'a file'} {DISK_FULL}" if is_full else str(error))
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):  # how torch.save reports a write that failed
            raise
        fail(f"a file {DISK_FULL}")


def first_words() -> str:
    """ "rank 3: ", and nothing for rank 0 or a process alone."""
    rank = getattr(rank_zero_only, "rank", None)  # of torchrun's or SLURM's environment until the processes are joined
    return f"rank {rank}: " if rank else ""


def is_first() -> bool:
    return not first_words()


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL = "could not be written, the disk is full: free space and run the same command again; what is saved is kept"


def fail(message: str) -> NoReturn:
    print(f"error: {first_words()}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
