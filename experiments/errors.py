"""A user's mistake is one line on the terminal, not a traceback."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def user_errors() -> Iterator[None]:
    """Turns the errors that name what to do (ValueError, missing files, a full disk, a non-finite loss) into one line
    and exit status 1 (130 for an interrupt); anything else is a defect and keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            print(
                f"error: the disk is full ({error.filename or 'no file named'}): free space, then run the same "
                "command again; nothing finished is lost",
                file=sys.stderr,
            )
        else:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except RuntimeError as error:
        if not hasattr(error, "user_message") and "CIFAR-10" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
