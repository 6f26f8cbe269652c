"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import re
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
        fail(DISK_FULL if isinstance(error, OSError) and is_disk_full(error) else own_line(str(error)))
    except RuntimeError as error:
        if not re.search(TORCH_SAVE_FAILED, str(error)):
            raise
        fail(DISK_FULL)


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
DISK_FULL = (
    "a file could not be written, the disk is full: free space and run the same command again; nothing finished is lost"
)


def fail(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(1)
