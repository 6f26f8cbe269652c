"""A stop at any time changes nothing, and a folder of something else is left alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyExperiment
from token_cases import contents, run, served, write_all

from datamodules.token_files import SPLITS, values_path
from experiments.pipeline import token_writer
from experiments.pipeline.encode import encode_batch
from experiments.runtime import appending, files, progress

PROJECT = Path(__file__).parents[3]

# ---- stopping and going on


@pytest.mark.parametrize(
    ("stop", "saves", "expected", "latents"),
    [(3, True, 8, ()), (5, False, 0, ()), (7, True, 24, ()), (7, True, 24, ("--latents", "float16"))],
)
def test_a_stopped_command_goes_on(
    tiny: TinyExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
    saves: bool,
    expected: int,
    latents: tuple[str, ...],
) -> None:
    """Twenty training images in batches of four, then ten of validation; `expected` are done when it goes on."""
    command, whole = write_all(tiny, tmp_path, monkeypatch, *latents)
    out = tmp_path / "stopped"
    calls = []

    def encode(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise ConnectionAbortedError("stopped")
        return encode_batch(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(token_writer, "encode_batch", encode)
        patch.setattr(appending, "SAVE_SECONDS", 0 if saves else 1e9)
        with pytest.raises(SystemExit):  # ConnectionAbortedError is an OSError
            run(patch, *command, "--out", str(out))
        assert json.loads((out / "state.json").read_text())["done"] == {
            "train": min(expected, 20),
            "val": expected - min(expected, 20),
        }
        for split in SPLITS:
            with open(values_path(out, split), "ab") as file:
                file.write(b"half a batch")  # what a kill may leave after the state
        calls.clear()
        patch.setattr(token_writer, "encode_batch", lambda *a: calls.append(1) or encode_batch(*a))
        with pytest.raises(ValueError, match=r"no meta\.json, its tokens are half written"):
            served(out)
        run(patch, *command, "--out", str(out))
    assert len(calls) == 8 - expected // 4, "no batch twice"
    assert contents(out) == contents(whole)


KILLED = """
import os, signal, sys
from experiments import tokenize
from experiments.pipeline import token_writer
from experiments.runtime import appending
encode_batch, calls = token_writer.encode_batch, []
appending.SAVE_SECONDS = 0
def encode(*arguments):
    calls.append(1)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_batch(*arguments)
token_writer.encode_batch = encode
tokenize.main()
"""


def test_a_killed_command_goes_on(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, whole = write_all(tiny, tmp_path, monkeypatch)
    out = ["--out", str(tmp_path / "killed")]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, "-c", KILLED, *command[1:], *out]
    killed = subprocess.run(script, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((tmp_path / "killed/state.json").read_text())["done"] == {"train": 12, "val": 0}
    (tmp_path / "killed/.state.json.abc").touch()  # a kill within write_json leaves such a file
    run(monkeypatch, *command, *out)
    assert contents(tmp_path / "killed") == contents(whole)


def test_what_is_lost_on_disk_is_made_again(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, whole = write_all(tiny, tmp_path, monkeypatch)
    expected = contents(whole)
    meta = json.loads((whole / "meta.json").read_text()) | {"sha256": {}}
    (whole / "meta.json").unlink()
    (whole / "state.json").write_text(json.dumps({"meta": meta, "done": {"train": 20, "val": 10}}))
    os.truncate(values_path(whole, "train"), 10 * 2 * 64 * 4 + 7)
    run(monkeypatch, *command, "--out", str(whole))
    assert contents(whole) == expected


def test_finished_tokens_are_not_made_again(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = write_all(tiny, tmp_path, monkeypatch)
    assert "nothing was done" not in capsys.readouterr().out
    times = {path: path.stat().st_mtime_ns for path in whole.iterdir()}
    monkeypatch.setattr(token_writer, "encode_batch", lambda *_: pytest.fail("nothing is done twice"))
    run(monkeypatch, *command, "--out", str(whole))
    assert "they are finished, nothing was done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.iterdir()} == times


def test_progress_is_shown(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0)
    write_all(tiny, tmp_path, monkeypatch)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  image ")]
    assert len(lines) == 8 and lines[0].startswith("  image 4/20  ") and lines[-1].endswith("images/s  0 s left")
    assert lines[5].startswith("  image 4/10  "), "the validation images"


# ---- other folders, small disks


HOLDER = """
import fcntl, sys
file = open(sys.argv[1] + ".lock", "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_of_something_else_is_left_alone(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = write_all(tiny, tmp_path, monkeypatch)
    before = contents(whole)

    def refused(out: Path, message: str) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            run(monkeypatch, *command, "data.train_size=16", "--out", str(out))
        assert message in capsys.readouterr().err

    refused(whole, "holds other tokens (data {")
    assert contents(whole) == before

    (whole / "meta.json").rename(whole / "state.json")
    refused(whole, "state.json: not readable (KeyError('meta')): delete")
    state = {"meta": json.loads(before["meta.json"]), "done": {"train": 20, "val": 0}}
    (whole / "state.json").write_text(json.dumps(state))
    refused(whole, "holds a half of other tokens (data {")
    (whole / "state.json").unlink()
    refused(whole, "train.bin: not made by this command")
    assert values_path(whole, "train").read_bytes() == before["train.bin"]

    other = tmp_path / "other"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(other)], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        refused(other, "is writing these tokens: wait for it")
        holder.kill()


def test_a_disk_that_is_too_small(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = (20 * 2 + 10) * 64 * 4 + 30 * 8
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed - 1}))
        patch.setattr(token_writer, "encode_batch", lambda *_: pytest.fail("too late"))
        write_all(tiny, tmp_path, monkeypatch)
    words = f"the tokens need {needed:,} bytes (0.0 GB) more, and the disk has {needed - 1:,} (0.0 GB) free"
    assert words in capsys.readouterr().err
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": needed}))
    write_all(tiny, tmp_path, monkeypatch)
