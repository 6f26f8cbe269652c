"""SIGINT (Ctrl-C) and SIGTERM (a batch system's stop): what is done is saved, then the command ends and says so."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
FORWARDED = signal.SIGUSR2  # from a command that is stopped to its workers, see `follow_parent`
SETTLE_SECONDS = 1.0  # a signal to a command and its workers has reached all of them
STOPPING = b"\nstopping as soon as the work done is saved; a second signal stops at once\n"


class Stopped(SystemExit):
    """Ends the command with the shell's exit status of a signal, 130 for SIGINT; `saved` says what was saved where."""

    def __init__(self, signum: int, saved: str = "") -> None:
        super().__init__(128 + signum)
        self.name, self.saved = signal.Signals(signum).name, saved


class StopSignals:
    """Within this context a signal raises `Stopped` where it arrives. Of the main thread; elsewhere nothing changes."""

    has_arrived = False  # a signal, anywhere in this process

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Any:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.getsignal(number) for number in SIGNALS}
            self.listen()
        return self

    def listen(self) -> None:
        for number in self.before:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: FrameType | None) -> None:
        StopSignals.has_arrived = True
        self.receive(number, frame)

    def receive(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class StopRequest(StopSignals):
    """Within this context a signal only sets `number`: the work calls `check` where all is whole and saved.

    With `at_once`, for work that is repeated anyway, or at a second signal, `Stopped` is raised where it arrives.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number, self.at_once = 0, False

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.at_once or self.number:
            raise Stopped(number)
        self.number = number
        os.write(2, STOPPING)  # print() must not be entered a second time from a handler

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is None:
            self.check()  # a signal after the last call of `check`

    def check(self, saved: str = "") -> None:
        """Raises Stopped when a signal has come."""
        if self.number:
            raise Stopped(self.number, saved)


@contextmanager
def stopping_at(moment: float) -> Iterator[None]:
    """Within this context the process is stopped as by SIGTERM when `time.time()` reaches `moment`; inf = never."""
    left = min(moment - time.time(), threading.TIMEOUT_MAX)
    timer = threading.Timer(max(0.0, left), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def follow_parent() -> None:
    """A worker that gets FORWARDED stops as by SIGTERM, unless a signal has reached it before.

    Ctrl-C and some batch systems stop a command and its workers at once: forwarded as it came, such a signal would be
    a worker's second, which stops it before its work is saved.
    """

    def receive(number: int, frame: FrameType | None) -> None:
        if not StopSignals.has_arrived:
            signal.raise_signal(signal.SIGTERM)

    signal.signal(FORWARDED, receive)


def wait_for(workers: Iterable[subprocess.Popen[bytes]]) -> None:
    """Waits until all have ended. A signal to us alone stops them, too, and we wait until they have saved."""
    workers = list(workers)
    try:
        for worker in workers:
            worker.wait()
    except BaseException:
        try:
            time.sleep(SETTLE_SECONDS)
        finally:
            for worker in workers:
                worker.send_signal(FORWARDED)
        for worker in workers:
            worker.wait()
        raise
