"""A command that is stopped stops its workers once, and gives each the time to save, whoever got the signal."""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.runtime import progress
from sweeps import workers
from sweeps.grid import SWEEPS

WORKER = """
import hashlib, os, pathlib, sys, time
from experiments.runtime.errors import user_errors
from experiments.runtime.signals import StopRequest, follow_parent

folder = pathlib.Path(sys.argv[1])
with user_errors():
    follow_parent()
    with StopRequest() as stop:
        (folder / f"{os.getpid()}.started").touch()
        while not stop.number:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 1_000_000)  # as a training step, it sees no signal before its end
        time.sleep(1)
        (folder / f"{os.getpid()}.saved").touch()
"""
COMMAND = """
import sys
from experiments.runtime.errors import user_errors
from experiments.runtime import signals as stop
from sweeps import workers

stop.SETTLE_SECONDS = 0.2
with user_errors():
    workers.spawn_workers("slow_worker", 2, sys.argv[1:], "journal")
"""


def test_a_worker_knows_how_many_share_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records say so: their images a second are of no use."""
    monkeypatch.setattr(workers, "follow_parent", lambda: None)
    monkeypatch.setattr(progress, "num_concurrent", 1)
    options = argparse.Namespace(workers=3, minutes=0.0, storage="journal", until=None, as_worker=True)
    workers.begin(options)
    assert progress.num_concurrent == 3


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["the command alone", "all processes"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_save_before_they_stop(tmp_path: Path, number: int, send: Callable[[int, int], None]) -> None:
    (tmp_path / "slow_worker.py").write_text(WORKER)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{SWEEPS.parent}"}
    command = [sys.executable, "-c", COMMAND, str(tmp_path)]
    with subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE) as parent:
        while len(list(tmp_path.glob("*.started"))) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
        send(parent.pid, number)
        _, printed = parent.communicate(timeout=60)
    assert parent.returncode == 128 + number
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert b"Traceback" not in printed
