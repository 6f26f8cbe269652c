"""Memory and time: the peaks of one run, the limits of containers, and the time that is left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import TinyExperiment
from lightning.pytorch.callbacks import RichProgressBar

from experiments.pipeline.training import train
from experiments.runtime import health, progress
from experiments.runtime.health import memory_limit, peak_memory_bytes, reset_peak_memory
from experiments.runtime.progress import ProgressLines, Throughput, TimeLeft


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_a_run_is_not_charged_for_the_one_before() -> None:
    reset_peak_memory()
    before = peak_memory_bytes()
    block = np.ones(2**28, np.uint8)
    assert block[-1] and peak_memory_bytes() >= before + 2**27
    del block
    reset_peak_memory()
    assert peak_memory_bytes() < before + 2**27


def test_where_the_peak_cannot_be_reset_it_is_the_processs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "read_text", refused)
    reset_peak_memory()
    assert 2**24 < peak_memory_bytes() < 2**40


def test_a_container_has_less_memory_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CGROUP", tmp_path)
    whole = memory_limit()
    assert whole > 2**28
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit() == whole
    (tmp_path / "memory.max").write_text(f"{2**28}\n")
    assert memory_limit() == 2**28


def test_every_record_has_memory_and_speed(tiny: TinyExperiment, tmp_path: Path) -> None:
    record = train(tiny(), "x", tmp_path / "run")
    assert 2**26 < record["peak_memory_bytes"] < 2**37 and record["images_per_second"] > 0
    assert record["peak_device_memory_bytes"] >= 0 and record["wall_seconds"] > 0


def test_speed_is_that_of_all_steps_of_a_run_that_was_stopped() -> None:
    stopped = Throughput()
    stopped.images, stopped.seconds = 300, 2.0
    goes_on = Throughput()
    goes_on.load_state_dict(stopped.state_dict())
    assert goes_on.images_per_second == 150


# ---- time left


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def trainer_at(step: int) -> Any:
    values = {"loss/generator": 0.5}
    return SimpleNamespace(
        global_step=step, max_steps=110, is_global_zero=True, callback_metrics=values, num_val_batches=[8]
    )


def test_a_log_shows_the_time_left(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ProgressLines()
    lines.on_train_start(trainer_at(10), None)  # type: ignore[arg-type]
    clock.now += 40
    module = SimpleNamespace(progress_metric="loss/generator")
    lines.on_train_batch_end(trainer_at(30), module, None, None, 0)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "  step 30/110  loss 0.5000  2.000 s/step  160 s left\n"
    early = trainer_at(50)
    early.callback_metrics, clock.now = {}, clock.now + 40
    lines.on_train_batch_end(early, module, None, None, 0)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "  step 50/110  2.000 s/step  120 s left\n", "nothing was logged yet"
    lines.on_validation_start(trainer_at(30), None)  # type: ignore[arg-type]
    lines.on_validation_batch_end(trainer_at(30), None, None, None, 0)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "", "a short validation says nothing"
    clock.now += 30
    lines.on_validation_batch_end(trainer_at(30), None, None, None, 2)  # type: ignore[arg-type]
    assert capsys.readouterr().out == "  validation batch 3/8  50 s left\n"


def test_a_terminal_shows_the_time_left_of_the_run(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only of the epoch, which Lightning's bar counts."""
    monkeypatch.setattr(RichProgressBar, "on_train_start", lambda *_: None)
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: {"loss": 1.0, "v_num": 0})
    bar = TimeLeft()
    bar.on_train_start(trainer_at(10), None)  # type: ignore[arg-type]
    assert "left" not in bar.get_metrics(trainer_at(10), None)  # type: ignore[arg-type]
    clock.now += 3600
    shown = bar.get_metrics(trainer_at(30), None)  # type: ignore[arg-type]
    assert (shown["loss"], shown["step"], shown["left"]) == (1.0, "30/110", "4:00:00")
