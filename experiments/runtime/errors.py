"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from experiments.runtime.signals import Stopped, StopSignals


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that name what to do (ValueError, missing files, a full disk, a non-finite loss) into one line
    and exit status 1, SIGINT and SIGTERM into one line and status 130 and 143; anything else is a defect and keeps its
    traceback.

    Of several processes rank 0 prints; another one only prints what it alone may have met, such as a full disk.
    """
    try:
        with StopSignals():
            yield
    except Stopped as stop:
        saved = f": {stop.saved}" if stop.saved else ""
        if is_main():
            print(f"\nstopped by {stop.name}{saved}; the same command continues from there", file=sys.stderr)
        raise
    except KeyboardInterrupt:
        if is_main():
            print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError, FloatingPointError) as error:
        if not is_main() and not isinstance(error, OSError):  # all ranks find the same
            sys.exit(1)
        if isinstance(error, OSError) and is_disk_full(error):
            fail(f"{error.filename or 'a file'} {DISK_FULL}")
        fail(own_line(str(error)))
    except RuntimeError as error:
        if not re.search(TORCH_SAVE_FAILED, str(error)):
            raise
        fail(f"a file {DISK_FULL}")


def own_rank() -> int:
    """0 for a single process; of torchrun's or SLURM's environment until the processes are joined."""
    utilities = sys.modules.get("lightning.pytorch.utilities")  # a process that has not imported it is a single one
    return getattr(getattr(utilities, "rank_zero_only", None), "rank", None) or 0


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return own_rank() == 0


def is_disk_full(error: OSError) -> bool:
    """No space, over quota, or over the limit of a file's size. Libraries may give the number in words, numpy none."""
    number = re.search(r"os error (\d+)", str(error))
    codes = {error.errno, int(number[1]) if number else None}
    is_short = re.search(r"\d+ requested and \d+ written", str(error)) is not None
    return is_short or bool(codes & {errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def own_line(message: str) -> str:
    """What was wrong, without the traceback that a loader process sends along."""
    if not message.startswith("Caught ") or "in DataLoader worker process" not in message.splitlines()[0]:
        return message
    return message.strip().splitlines()[-1].partition(": ")[2]


TORCH_SAVE_FAILED = r"PytorchStreamWriter|unexpected pos \d+ vs|iostream error"
DISK_FULL = "could not be written, the disk is full: free space and run the same command again; what is saved is kept"


def fail(message: str) -> NoReturn:
    rank = own_rank()
    print(f"error: {f'rank {rank}: ' if rank else ''}{' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
