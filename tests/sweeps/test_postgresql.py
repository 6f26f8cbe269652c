"""Workers that share a sweep through a real PostgreSQL server train real, tiny cells: each once, whatever dies."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgresql_server import PASSWORD, Server
from shared_worker import work, write_sweep

from experiments.runtime.records import find_records
from sweeps import grid as grid_module
from sweeps import storage as storage_module
from sweeps import sweep as sweep_module
from sweeps.grid import load_grid
from sweeps.queue import Queue
from sweeps.run import main as run_main
from sweeps.storage import database_url

WAIT = 400.0  # seconds; the tests wait for events, this only ends a test that hangs
CONTEXT = multiprocessing.get_context("forkserver")  # imports once, then forks a worker in a moment
CONTEXT.set_forkserver_preload(["experiments.pipeline.training", "sweeps.sweep", "sweeps.queue", "psycopg"])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    pytest.importorskip("psycopg", reason="the driver is not installed: pip install 'psycopg[binary]'")
    try:
        running = Server()
        running.start()
    except OSError as error:
        pytest.skip(f"no PostgreSQL server can be had here: {error}")
    with_stop = running.__exit__
    yield running
    with_stop()


class Machines:
    """Starts workers of one sweep; `out` is their OUT, `logs` what they print."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self.out = folder, url, folder / "runs"
        self.workers: list[BaseProcess] = []

    def start(self, name: str, out: Path | None = None, url: str | None = None, **settings: Any) -> BaseProcess:
        environment = {"STORAGE": url or self.url}
        arguments = (self.folder / "sweep.yaml", out or self.out, self.folder / f"{name}.log", environment, settings)
        worker = CONTEXT.Process(target=work, args=arguments, name=name)
        worker.start()
        self.workers.append(worker)
        return worker

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def steps(self) -> dict[int, list[tuple[int, int]]]:
        """Codebook size -> (process, step) of each training step that was made, in order."""
        steps: dict[int, list[tuple[int, int]]] = {}
        path = self.folder / "steps"
        for line in path.read_text().splitlines() if path.exists() else []:
            process, size, step = map(int, line.split())
            steps.setdefault(size, []).append((process, step))
        return steps

    def wait_for(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + WAIT
        while not condition():
            is_anyone_there = any(worker.is_alive() for worker in self.workers)
            assert is_anyone_there and time.monotonic() < end, {
                path.name: path.read_text()[-2000:] for path in self.folder.glob("*.log")
            }
            time.sleep(0.05)

    def join(self, *workers: BaseProcess) -> None:
        for worker in workers:
            worker.join(WAIT)
            assert worker.exitcode == 0, self.log(worker.name)


@pytest.fixture
def machines(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machines]:
    machines = Machines(tmp_path, server.create(request.node.name))
    yield machines
    for worker in machines.workers:
        if worker.is_alive():
            worker.kill()
        worker.join()


def states(machines: Machines) -> list[str]:
    (name,) = optuna.get_all_study_names(database_url(machines.url).render_as_string(hide_password=False))
    queue = Queue(name, machines.url, machines.folder / "looker")
    return sorted(trial.state.name for trial in queue.study.get_trials())


def records(out: Path) -> dict[int, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    return {record["config"]["model"]["codebook_size"]: record for record in found}


def test_four_workers_train_each_cell_once_and_one_that_is_killed_costs_little(machines: Machines) -> None:
    """Four commands start together on an empty database. One is killed (-9) at step 5; its checkpoint is of step 4."""
    sizes = [8, 16, 32, 64, 128]
    write_sweep(machines.folder, sizes)
    killed = machines.start("killed", die_at=5)
    others = [machines.start(f"worker{number}") for number in range(3)]
    machines.join(*others)
    killed.join(WAIT)
    assert killed.exitcode == -signal.SIGKILL
    steps = machines.steps()
    assert sorted(steps) == sizes
    (lost,) = (size for size in sizes if killed.pid in dict(steps[size]))
    for size in sizes:
        expected = [1, 2, 3, 4, 5, 5, 6] if size == lost else [1, 2, 3, 4, 5, 6]
        assert [step for _, step in steps[size]] == expected, f"the cell of {size} codes"
        assert len(dict(steps[size])) == (2 if size == lost else 1), "one worker a cell"
    assert states(machines) == ["COMPLETE"] * len(sizes) + ["FAIL"]
    assert sorted(records(machines.out)) == sizes

    # The numbers are those of a run that was never killed.
    machines.join(machines.start("alone", out=machines.folder / "other", url="journal"))
    for size, record in records(machines.folder / "other").items():
        assert record["metrics"] == records(machines.out)[size]["metrics"]

    # And the password is in no file.
    texts = [path for path in machines.folder.rglob("*") if path.is_file() and "looker" not in path.parts]
    assert len(texts) > 10
    assert not [path for path in texts if PASSWORD.encode() in path.read_bytes()]


def test_machines_that_share_no_disk(machines: Machines) -> None:
    """B sees A's first cell without training it again. A then stops for longer than the grace period: B takes its cell
    over, and A, which comes back and finishes it too, does no harm."""
    write_sweep(machines.folder, [8])
    machines.join(machines.start("first", out=machines.folder / "a", machine="a"))
    write_sweep(machines.folder, [8, 16])
    a = machines.start("a", out=machines.folder / "a", machine="a", wait_at=3, heartbeat=1)
    machines.wait_for(lambda: 3 in [step for _, step in machines.steps().get(16, [])])
    assert a.pid is not None
    os.kill(a.pid, signal.SIGSTOP)
    b = machines.start("b", out=machines.folder / "b", machine="b", heartbeat=1, grace=4)
    machines.wait_for(lambda: (b.pid, 3) in machines.steps()[16])
    (machines.folder / "go").touch()
    os.kill(a.pid, signal.SIGCONT)
    machines.join(a, b)
    assert "finished earlier" in machines.log("b") and "2 of 2 cells finished" in machines.log("b")
    steps = machines.steps()
    assert len(steps[8]) == 6
    for worker in (a, b):
        assert [step for process, step in steps[16] if process == worker.pid] == [1, 2, 3, 4, 5, 6]
    of_a, of_b = records(machines.folder / "a"), records(machines.folder / "b")
    assert of_a[8] == of_b[8] and of_a[16]["metrics"] == of_b[16]["metrics"]
    assert states(machines) == ["COMPLETE", "COMPLETE", "FAIL"]


def test_a_database_that_goes_away_is_waited_for(server: Server, machines: Machines) -> None:
    write_sweep(machines.folder, [8, 16])
    worker = machines.start("worker", wait_at=3)
    machines.wait_for(lambda: machines.steps().get(8, [])[-1:] == [(worker.pid, 3)])
    server.stop()
    try:
        (machines.folder / "go").touch()
        machines.wait_for(lambda: "cannot be reached" in machines.log("worker"))
        assert len(machines.steps()[8]) == 6, "the training itself does not need the database"
    finally:
        server.start()
    machines.join(worker)
    (line,) = [line for line in machines.log("worker").splitlines() if "cannot be reached" in line]
    database = machines.url.replace(PASSWORD, "***")
    assert line.startswith(f"the database {database} cannot be reached (") and line.endswith("waiting for it")
    assert f"the database {database} is back after" in machines.log("worker")
    assert sorted(records(machines.out)) == [8, 16] and [len(steps) for steps in machines.steps().values()] == [6, 6]
    assert states(machines) == ["COMPLETE", "COMPLETE"]


def test_a_database_that_stays_away_ends_the_command(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a line that says so, and no traceback."""
    queue = Queue("a", server.create("away"), tmp_path)
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(storage_module, "PATIENCE_SECONDS", 0.1)
    server.stop()
    try:
        with pytest.raises(storage_module.DatabaseAway, match=r"has been away for .* run the same command again"):
            queue.errors()
    finally:
        server.start()


def test_a_wrong_password_is_one_line_without_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path, [8])
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    words = ["--output-dir", str(tmp_path / "runs"), "--data", "shapes"]
    with pytest.raises(SystemExit):
        run_main([str(sweep), *words, "--storage", server.url("postgres", "wr0ng-word")])
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "password authentication failed" in error
    assert "sweeper:***@127.0.0.1" in error and "wr0ng-word" not in error


def test_commands_that_start_together_fill_the_queue_once(server: Server, tmp_path: Path) -> None:
    """Without the lock both would see an empty queue and put everything in."""
    url = server.create("fill")
    first, second = (Queue("a", url, tmp_path / name) for name in "ab")
    jobs: dict[str, dict[str, Any]] = {f"{number:012}": {"folder": f"{number}"} for number in range(6)}
    filler = CONTEXT.Process(target=fill, args=(url, tmp_path / "c", jobs))
    with first.alone():
        filler.start()
        while filler.is_alive() and not is_anyone_waiting(server.url("fill")):
            time.sleep(0.05)
        assert filler.is_alive() and not second.trials()
        for digest in jobs:
            first.study.enqueue_trial({}, user_attrs={"digest": digest})
    filler.join(WAIT)
    assert filler.exitcode == 0 and len(second.trials()) == 6


def is_anyone_waiting(url: str) -> bool:
    import psycopg

    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone()
    return found is not None


def fill(url: str, folder: Path, jobs: dict[str, dict[str, Any]]) -> None:
    Queue("a", url, folder).fill(jobs)


def test_records_are_found_by_what_they_are_of(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record in the database that is of another configuration is not taken."""
    sweep = write_sweep(machines.folder, [8])
    monkeypatch.setattr(grid_module, "EXPERIMENTS", machines.folder)
    grid = load_grid(sweep, "reduced", "1", ["data.name=shapes", f"runtime.output_dir={machines.out}"])
    (run,), mine = grid.runs, sweep_module.Sweep(grid, machines.out)
    mine.queue = queue = Queue(mine.study_name, machines.url, machines.out)
    queue.fill({run.digest: mine.job(run)})
    config = run.experiment.identity() | {"seed": 7}
    record = {"format": 1, "digest": run.digest, "data_id": "shapes", "config": config, "metrics": {}, "protocols": {}}
    with queue.claim({run.digest}) as (trial, _):
        assert trial is not None
        queue.finish(trial, 1.0, {"record": record}, {})
    assert queue.records() == [record]
    mine.fetch()
    assert find_records(run.experiment, [machines.out / "records"]) == {}
    with queue.claim({run.digest}) as (trial, _):
        assert trial is None
    queue.fill({run.digest: mine.job(run)})
    with queue.claim({run.digest}) as (trial, _):
        assert trial is not None
        queue.finish(trial, 1.0, {"record": record | {"config": run.experiment.identity()}}, {})
    mine.fetch()
    assert set(find_records(run.experiment, [machines.out / "records"])) == {"shapes"}
