"""The queue: nothing finished is trained again, nothing killed is lost, no failure stops the others."""

import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import FrozenTrial
from small_sweep import sweep_of

import sweeps.sweep as sweep_module
from experiments.config import compose as config_module
from experiments.config.experiment import Experiment
from experiments.config.values import read_yaml
from experiments.pipeline import upstream as chain
from experiments.runtime.files import LOCK, locked, write_json
from experiments.runtime.records import Record, read_record, record_path
from sweeps import grid as grid_module
from sweeps import queue as queue_module
from sweeps import storage as storage_module
from sweeps import workers as workers_module
from sweeps.grid import SWEEPS
from sweeps.queue import Queue
from sweeps.run import main as run_main

SWEEP = sweep_of(16, 32, 64)


class Trainer:
    """Stands in for experiments.train.train: counts its calls and writes a record."""

    def __init__(self) -> None:
        self.trained: list[int] = []
        self.before: Callable[[int], None] = lambda size: None

    def __call__(self, experiment: Experiment, name: str, run_dir: Path) -> Record:
        size = experiment.model.codebook_size
        self.before(size)
        self.trained.append(size)
        record = {
            "format": 1,
            "name": name,
            "config": experiment.identity(),
            "data_id": "shapes",
            "metrics": {"rfid": 100.0 / size},
            "protocols": {"rfid": "rfid/efficientnet-lite2@64px/val"},
        }
        write_json(record_path(Path(experiment.runtime.output_dir) / "records", experiment, "shapes"), record)
        return record


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    text = "model:\n  name: vqgan\ndata:\n  name: shapes\n"
    (tmp_path / "vqgan_cifar10.yaml").write_text(text)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    trainer = Trainer()
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(sweep_module, "train", trainer)
    monkeypatch.setattr(queue_module, "POLL_SECONDS", 0.05)
    return trainer


def command(tmp_path: Path, *extra: str) -> int:
    return run_main([str(tmp_path / "sweep.yaml"), "--output-dir", str(tmp_path / "runs"), *extra])


def trials(tmp_path: Path, storage: str = "journal", pattern: str = "sweep_*") -> list[FrozenTrial]:
    """Those of the one study that there is."""
    if storage == "journal":
        (name,) = (path.stem for path in (tmp_path / "runs" / "sweeps").glob(f"{pattern}.journal"))
    else:
        (name,) = optuna.get_all_study_names(storage)
    return Queue(name, storage, tmp_path / "runs").study.get_trials()


def test_a_dry_run_says_what_is_to_be_trained(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(tmp_path, "--dry-run") == 0
    assert trainer.trained == [] and not (tmp_path / "runs").exists()
    assert f"[2/3] 32: to be trained: {tmp_path}/runs/experiments/" in capsys.readouterr().out
    assert command(tmp_path, "--only", "32") == 0
    capsys.readouterr()
    assert command(tmp_path, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("[2/3] 32: finished earlier") and "to be trained" in lines[2]


def test_the_configuration_of_a_cell_is_a_recipe(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command(tmp_path, "--print-config", "--only", "32", "--seeds", "7,", "data.batch_size=3") == 0
    text = capsys.readouterr().out
    assert text.startswith("---\n# 32\n") and text.count("---") == 1
    (recipe := tmp_path / "recipe.yaml").write_text(text)
    experiment = config_module.load_experiment(recipe)
    model, data = experiment.tokenizer, experiment.data
    assert (model.codebook_size, experiment.seed, data.batch_size, experiment.name) == (32, 7, 3, "vqgan_cifar10")
    assert trainer.trained == [] and not (tmp_path / "runs").exists()


def test_finished_cells_are_not_trained_again(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(tmp_path) == 0
    assert trainer.trained == [16, 32, 64]
    assert "[2/3] 32: trained 0 s, rFD (Lite2) 3.1" in capsys.readouterr().out
    assert command(tmp_path) == 0
    other = tmp_path / "other.yaml"
    other.write_text(SWEEP.replace("K:", "size:").replace("[K]", "[size]"))
    assert run_main([str(other), "--output-dir", str(tmp_path / "runs")]) == 0
    assert trainer.trained == [16, 32, 64]
    assert capsys.readouterr().out.count("finished earlier, rFD (Lite2)") == 6
    done = trials(tmp_path)
    assert [(t.state.name, t.value, t.params["codebook_size"]) for t in done] == [
        ("COMPLETE", 100 / size, size) for size in (16, 32, 64)
    ]


@pytest.mark.parametrize("maximize", [False, True])
def test_the_best_trial_is_that_of_the_objective(trainer: Trainer, tmp_path: Path, maximize: bool) -> None:
    """What is not a number is the worst."""
    (tmp_path / "sweep.yaml").write_text(f"maximize: {str(maximize).lower()}\n{SWEEP}")
    assert command(tmp_path) == 0
    (journal,) = (tmp_path / "runs" / "sweeps").glob("*.journal")
    direction = "maximize" if maximize else "minimize"
    queue = Queue(journal.stem, "journal", tmp_path / "runs", direction=direction)
    assert queue.study.direction.name.lower() == direction
    assert queue.study.best_trial.params["codebook_size"] == (16 if maximize else 64)
    queue.fill({"damaged": {"folder": "damaged"}})
    with queue.claim({"damaged"}) as (trial, _):
        assert trial is not None
        queue.finish(trial, math.nan, {}, {})
    assert queue.study.trials[-1].value == (-math.inf if maximize else math.inf)


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("objective: ssim", False),
        ("maximize: true", False),
        ("title: Other words", True),
        ("tables[0].cells: fewer", True),
    ],
)
def test_trials_that_are_ranked_by_other_numbers_are_another_study(
    trainer: Trainer, tmp_path: Path, change: str, is_same: bool
) -> None:
    sweep = sweep_module.Sweep(grid_module.load_grid(tmp_path / "sweep.yaml", "quick"), tmp_path)
    text = SWEEP.replace("title: A test\n", "") if change.startswith("title") else SWEEP
    fewer = "".join(line for line in SWEEP.splitlines(keepends=True) if "K: 64" not in line)
    (tmp_path / "sweep.yaml").write_text(fewer if "cells" in change else f"{change}\n{text}")
    other = sweep_module.Sweep(grid_module.load_grid(tmp_path / "sweep.yaml", "quick"), tmp_path)
    assert (other.study_name == sweep.study_name) == is_same
    assert sweep_module.Sweep(other.grid, tmp_path, published=False).study_name != other.study_name


def test_a_finished_sweep_shows_its_tables_and_opens_no_queue(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is not whole: its cells stay empty."""

    def fail(size: int) -> None:
        if size == 32:
            raise FloatingPointError("loss is nan")

    trainer.before = fail
    assert command(tmp_path) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 runs are missing" in out and "16 6.2" in out
    trainer.before = lambda size: None
    assert command(tmp_path) == 0
    monkeypatch.setattr(sweep_module.Sweep, "open_queue", lambda *_: pytest.fail("nothing is left to queue"))
    capsys.readouterr()
    assert command(tmp_path) == 0
    out = capsys.readouterr().out
    assert "0 of 3 cells to train" in out and "rFID" in out.split("cells finished")[1]
    (table,) = (tmp_path / "runs" / "tables").glob("*.md")
    assert "| 32 | 3.1 |" in table.read_text() and f"written: {table}" in out


def test_cells_of_published_records_are_trained_when_asked(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a queue of their own."""
    assert command(tmp_path) == 0
    monkeypatch.setattr(sweep_module, "PUBLISHED", tmp_path / "published")
    (tmp_path / "runs" / "records").rename(tmp_path / "published")
    assert command(tmp_path) == 0
    assert trainer.trained == [16, 32, 64]
    assert command(tmp_path, "--no-published") == 0
    assert command(tmp_path, "--no-published") == 0
    assert trainer.trained == [16, 32, 64] * 2
    studies = list((tmp_path / "runs" / "sweeps").glob("sweep_quick_shapes_*.journal"))
    assert [len(trials(tmp_path, pattern=study.stem)) for study in studies] == [3, 3]


def test_a_cell_on_top_of_another_model(trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VIM: its trial shows the tokenizer's codebook, and the scale's overlay reaches the tokenizer.

    It is trained where a run on top of it would look for its model.
    """
    recipe = "upstream: {recipe: vqgan_cifar10.yaml}\nmodel: {name: vim}\ndata: {name: shapes, image_size: 32}\n"
    (tmp_path / "vim_cifar10.yaml").write_text(recipe)
    monkeypatch.setattr(config_module, "RECIPES", tmp_path)
    cells = SWEEP.replace("experiment: vqgan,", "experiment: vim,").replace("model.codebook", "upstream.model.codebook")
    (tmp_path / "sweep.yaml").write_text(cells)
    sizes, train_sizes = [], []

    def train(experiment: Experiment, name: str, run_dir: Path) -> Record:
        upstream = experiment.upstream  # type: ignore[attr-defined]
        assert run_dir == chain.run_dir(experiment, name)
        sizes.append(upstream.model.codebook_size)
        train_sizes.append(upstream.data.train_size)
        content = {"format": 1, "name": name, "config": experiment.identity(), "data_id": "shapes"}
        record = content | {"metrics": {"rfid": 1.0}, "protocols": {"rfid": "p"}}
        write_json(record_path(Path(experiment.runtime.output_dir) / "records", experiment, "shapes"), record)
        return record

    monkeypatch.setattr(sweep_module, "train", train)
    assert command(tmp_path) == 0
    assert sizes == [trial.params["codebook_size"] for trial in trials(tmp_path)] == [16, 32, 64]
    assert set(train_sizes) == {read_yaml(SWEEPS / "scales/quick.yaml")["overrides"]["data.train_size"]}


def test_a_failed_cell_does_not_stop_the_others_and_is_tried_again(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def fail(size: int) -> None:
        if size == 32:
            raise FloatingPointError("loss is nan\nat step 3")

    trainer.before = fail
    assert command(tmp_path) == 1
    assert trainer.trained == [16, 64]
    out = capsys.readouterr().out
    assert "[2/3] 32: no result: FloatingPointError: loss is nan at step 3" in out
    assert "2 of 3 cells finished" in out
    (log,) = (tmp_path / "runs").rglob("error.txt")
    assert "Traceback" in log.read_text()

    trainer.before = lambda size: None
    assert command(tmp_path) == 0
    assert trainer.trained == [16, 64, 32]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_cleanly_and_the_same_command_continues(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture, number: signal.Signals
) -> None:
    def stop_at_32(size: int) -> None:
        if size == 32:
            os.kill(os.getpid(), number)

    trainer.before = stop_at_32
    with pytest.raises(SystemExit) as stop:
        command(tmp_path)
    assert stop.value.code == 128 + number
    assert f"stopped by {number.name}; the same command continues" in capsys.readouterr().err
    states = [trial.state.name for trial in trials(tmp_path)]
    assert states == ["COMPLETE", "FAIL", "WAITING", "WAITING"], "what was stopped waits for the next worker"
    trainer.before = lambda size: None
    assert command(tmp_path) == 0
    assert sorted(trainer.trained) == [16, 32, 64]


@pytest.mark.parametrize("database", [False, True])
def test_the_cell_of_a_killed_worker_is_run_again(
    trainer: Trainer, tmp_path: Path, database: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = ["--storage", f"sqlite:///{tmp_path}/study.db"] if database else []
    if database:  # a heartbeat that counts as dead at once when it stops
        monkeypatch.setattr(storage_module, "HEARTBEAT_SECONDS", 1)
        monkeypatch.setattr(storage_module, "GRACE_SECONDS", 1)

    def die(size: int) -> None:
        if size == 32:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.before = die
    worker = multiprocessing.get_context("fork").Process(target=command, args=(tmp_path, *storage), daemon=True)
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    trainer.before = lambda size: None
    if database:
        time.sleep(2.1)
    assert command(tmp_path, *storage) == 0
    assert sorted(trainer.trained) == [32, 64]  # 16 was finished before the worker died at 32
    states = [trial.state.name for trial in trials(tmp_path, storage[-1] if database else "journal")]
    assert sorted(states) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]


def test_a_cell_that_another_command_trains_is_waited_for(trainer: Trainer, tmp_path: Path) -> None:
    """Having trained the others. The lock is the one of the run's folder, whichever command holds it."""
    context = multiprocessing.get_context("fork")
    resolve = workers_module.data_resolver("auto", "data", str(tmp_path / "runs"))
    taken = grid_module.load_grid(tmp_path / "sweep.yaml", "quick").prepared(resolve).runs[1]
    folder = chain.run_dir(taken.experiment, "vqgan_cifar10")
    folder.mkdir(parents=True)
    is_held, may_end = context.Event(), context.Event()

    def hold() -> None:
        with locked(folder / LOCK, "is training there", waits=False):
            is_held.set()
            may_end.wait()

    holder = context.Process(target=hold, daemon=True)
    holder.start()
    is_held.wait()
    worker = context.Process(target=command, args=(tmp_path,), daemon=True)
    worker.start()
    records = tmp_path / "runs" / "records"
    end = time.monotonic() + 60
    while (len(list(records.iterdir())) if records.is_dir() else 0) < 2:
        assert worker.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    assert not record_path(records, taken.experiment, "shapes").exists()
    time.sleep(0.3)
    assert worker.is_alive()
    Trainer()(taken.experiment, "vqgan_cifar10", folder)
    may_end.set()
    holder.join()
    worker.join(20)
    assert worker.exitcode == 0
    assert len(list(records.iterdir())) == 3


def test_workers_share_the_cells(
    trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    context = multiprocessing.get_context("fork")

    def spawn(module: str, count: int, arguments: list[str], storage: str) -> None:
        def work() -> None:
            raise SystemExit(run_main([*arguments, "--as-worker"]))

        workers = [context.Process(target=work, daemon=True) for _ in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(30)

    monkeypatch.setattr(workers_module, "spawn_workers", spawn)
    assert command(tmp_path, "--workers", "2") == 0
    assert capfd.readouterr().out.count("trained 0 s") == 3  # each once


def test_a_bad_cell_stops_the_sweep_before_any_training(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP.replace("model.codebook_size: 64", "model.codebok_size: 64"))
    with pytest.raises(SystemExit) as stop:
        command(tmp_path)
    assert stop.value.code == 1
    assert trainer.trained == []
    error = capsys.readouterr().err
    assert "row '64'" in error and "codebok_size" in error


def test_a_bad_storage_is_named(trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        command(tmp_path, "--storage", "postgress")
    assert "STORAGE=postgress" in capsys.readouterr().err


def test_missing_data_is_one_error_before_any_cell(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--data", "cifar10", "--data-dir", str(tmp_path / "none"), "data.download=false")
    (tmp_path / "vqgan_cifar10.yaml").write_text("model:\n  name: vqgan\ndata:\n  name: cifar10\n")
    with pytest.raises(SystemExit) as stop:
        command(tmp_path, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and trainer.trained == []
    assert len(error.splitlines()) == 1 and str(tmp_path / "none") in error and "data=shapes" in error


def test_two_workers_that_write_the_same_record_leave_a_whole_one(tmp_path: Path) -> None:
    """Each reader sees the one or the other, never a mixture or a part."""
    path = tmp_path / "records" / "digest.shapes.json"
    content = {"format": 1, "config": {}, "data_id": "shapes", "metrics": {}, "protocols": {}}

    def write(worker: int) -> None:
        for number in range(100):
            write_json(path, content | {"history": [worker] * (1000 + 5000 * ((worker + number) % 2))})

    write(0)
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(worker,), daemon=True) for worker in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(set(read_record(path)["history"])) == 1
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no temporary file is left"
