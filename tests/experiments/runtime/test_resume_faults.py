"""What stops a run from outside: signals, a second run, a full disk, a folder that cannot be written."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from resume_cases import Driver, recipe
from test_resume import TOKENIZER, Runs, driver
from token_cases import arguments, contents, save

import experiments.pipeline.training
import experiments.train
from experiments.runtime.errors import user_errors
from experiments.runtime.files import LOCK, inherited, locked, replacing, require_writable
from experiments.runtime.signals import Stopped, StopRequest

__all__ = ["driver"]

HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 123 on a-host")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


# ---- signals


def test_a_signal_saves_and_ends_the_run(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """In a training step, in a validation, and in the evaluation; checkpoint_every alone would have saved nothing."""
    options = ["trainer.max_steps=7", "trainer.validate_every=5", "trainer.weight_ema=0.5", "data.flip=true"]
    options += ["data.val_batch_size=5"]
    runs = Runs(driver, tiny("vqgan", *options), tmp_path)
    last = tmp_path / "killed/checkpoints/last.ckpt"

    first = runs.again(f"{TOKENIZER}.training_step", 3, "term")
    assert first.code == 143 and f"stopped by SIGTERM: step 3 of 7 is in {last}" in first.output
    assert "the same command continues" in first.output and "Traceback" not in first.output
    assert torch.load(last, weights_only=True)["global_step"] == 3

    second = runs.again(f"{TOKENIZER}.validation_step", 2, "int")
    assert second.code == 130 and "stopped by SIGINT" in second.output and "Traceback" not in second.output
    assert torch.load(last, weights_only=True)["global_step"] == 5

    third = runs.again(f"{TOKENIZER}.training_step", 2, "term")  # the last step: there is a model to save
    assert third.code == 143 and "the trained model is in" in third.output and not runs.record.exists()
    fourth = runs.again(f"{TOKENIZER}.validation_step", 1, "int")
    assert fourth.code == 130 and not runs.record.exists(), fourth.output
    runs.finish()


def test_a_signal_saves_the_tokens(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny()
    command = arguments(experiment, save(experiment, tmp_path / "final.ckpt"), "--flip")[1:]
    module, out = "experiments.tokenize", ["--out", str(tmp_path / "stopped")]
    assert driver.run(module, *command, "--out", str(tmp_path / "whole")).code == 0
    stopped = driver.run(module, *command, *out, arm=["experiments.pipeline.token_writer:encode_batch", 3, "term"])
    assert stopped.code == 143 and "12 of 20 images are done in" in stopped.output
    killed = driver.run(module, *command, *out, arm=["experiments.pipeline.token_writer:finish", 1, "kill"])
    assert killed.code == -signal.SIGKILL and not (tmp_path / "stopped/meta.json").exists()
    assert driver.run(module, *command, *out).code == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_waits_for_its_moment_and_the_second_does_not(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as at_the_end, StopRequest() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.number == number, "and here we are"
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
        with pytest.raises(Stopped) as asked:
            stop.check("all is saved")
    assert asked.value.code == 128 + number and asked.value.saved == "all is saved"
    assert at_the_end.value.code == 128 + number, "no signal is lost"
    assert signal.getsignal(number) is before


def test_a_command_ends_with_the_status_of_the_signal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, user_errors():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.value.code == 143
    assert capsys.readouterr().err.strip() == "stopped by SIGTERM; the same command continues from there"


# ---- two runs in one folder


def test_a_second_run_is_refused(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """And a killed one leaves no lock behind."""
    run_dir = tmp_path / "run"
    command = ["experiments.train", recipe(tiny(), tmp_path / "recipe.yaml"), "--run-dir", str(run_dir)]
    arm = [f"{TOKENIZER}.training_step", 2, "pause", str(tmp_path)]
    first = driver.start(*command, arm=[arm], settings={}, background=True)
    while not (tmp_path / "paused").exists():
        os.sched_yield()
    second = driver.run(*command)
    assert second.code == 1
    assert second.output.strip().startswith(f"error: {run_dir}: process {first} on ") and "--run-dir" in second.output
    assert second.output.count("\n") == 1
    os.kill(first, signal.SIGKILL)
    assert driver.wait(first) == -signal.SIGKILL
    third = driver.run(*command)
    assert third.code == 0, third.output


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_run_waits_where_it_is_told_to(
    holder: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ".lock"
    message = "process 123 on a-host is training there: wait"
    with pytest.raises(ValueError, match=message), locked(path, "is training there", waits=False):
        pytest.fail("it is held")
    assert holder.stdin is not None
    timer = threading.Timer(0.3, holder.stdin.close)
    timer.start()
    with locked(path, "is training there"):
        assert not timer.is_alive(), "not before the other has ended"
    assert "waiting for it" in capsys.readouterr().out


def test_a_lock_dies_with_its_process(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    holder.kill()
    holder.wait()
    with locked(tmp_path / ".lock", "is training there", waits=False):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_run_may_enter_its_folder_again_and_so_may_a_process_that_it_starts(tmp_path: Path) -> None:
    """A sweep's worker holds the lock of a cell that it trains here, or on several devices in a process of its own."""
    path = tmp_path / LOCK
    code = f"from experiments.runtime.files import *\nwith locked(Path({str(path)!r}), '', False): print('in')"
    assert inherited(path) == {}, "nothing is held"
    with locked(path, "is training there", waits=False):
        with locked(path, "is training there", waits=False):
            pass
        for more, is_let_in in ((inherited(path), True), (inherited(tmp_path.parent / LOCK), False)):
            command = [sys.executable, "-c", code]
            result = subprocess.run(command, env=os.environ | more, capture_output=True, text=True)
            assert (result.stdout == "in\n") == is_let_in, result.stderr
    with locked(path, "is training there", waits=False):
        pass


# ---- disks


def test_a_full_disk_keeps_the_last_checkpoint(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """The system cuts the file off in its middle."""
    runs = Runs(driver, tiny("vqgan", "trainer.max_steps=6", "trainer.checkpoint_every=2"), tmp_path)
    runs.killed(f"{TOKENIZER}.training_step", 4, "kill")
    last = tmp_path / "killed/checkpoints/last.ckpt"
    content = last.read_bytes()
    full = runs.again(file_size=len(content) // 2)
    assert full.code == 1 and "Traceback" not in full.output, full.output
    assert full.output.count("error: ") == 1
    assert f"error: {last} could not be written, the disk is full: free space and run the same" in full.output
    assert last.read_bytes() == content and [*last.parent.iterdir()] == [last], "no half file"
    runs.finish()


def test_a_file_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as error, replacing(path) as file:
        file.write(b"half of the new")
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
    with replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which not even root may write")
def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", recipe(tiny(), tmp_path / "recipe.yaml"), "--run-dir", "/proc/run"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(experiments.pipeline.training, "prepare", lambda *_: pytest.fail("too late"))
    with pytest.raises(SystemExit) as stop:
        experiments.train.main()
    message = capsys.readouterr().err
    assert stop.value.code == 1 and message.count("\n") == 1
    assert message.startswith("error: /proc/run: cannot be written") and "choose another --run-dir" in message


@pytest.mark.parametrize(("number", "kind"), [(30, PermissionError), (28, OSError)])
def test_a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(number, os.strerror(number))

    require_writable(tmp_path / "new")
    monkeypatch.setattr("experiments.runtime.files.tempfile.TemporaryFile", refuse)
    with pytest.raises(kind, match=r"Read-only file system|No space left"):
        require_writable(tmp_path / "new")
