"""Trains the cells of a sweep that have no result record yet.

python -m sweeps.run sweeps/ablation_codebook.yaml --scale quick
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from experiments.build import data_module, resolve_data
from experiments.chain import run_dir
from experiments.config import Experiment
from experiments.errors import user_errors
from experiments.records import PUBLISHED, Record, find_records
from experiments.train import train_apart as train
from sweeps.grid import Grid, Run, load_grid
from sweeps.schema import ColumnSpec
from sweeps.study import Queue

DATA_WORDS = {"cifar10": "cifar10", "shapes": "shapes", "image_folder": "imagefolder"}
POLL_SECONDS = 5.0  # between looks at the cells that others train
GRACE_SECONDS = 10.0


class Sweep:
    """A grid, its queue and its results. Prints one line a cell."""

    def __init__(self, grid: Grid, storage: str, output_dir: Path) -> None:
        self.grid, self.output_dir = grid, output_dir
        self.runs = {run.digest: run for run in grid.runs}
        self.data_ids = {digest: data_id(run.experiment) for digest, run in self.runs.items()}
        self.position = {digest: number for number, digest in enumerate(self.runs, 1)}
        data = "+".join(sorted(set(self.data_ids.values())))
        self.queue = Queue(f"{grid.name}_{grid.scale}_{data}", storage, output_dir)
        self.columns = {
            run.digest: table.spec.columns for table in grid.tables for row in table.rows for run in row.runs
        }

    def record(self, run: Run) -> Record | None:
        """The finished record of this run on this data, ours or a published one."""
        found = find_records(run.experiment, [self.output_dir / "records", PUBLISHED])
        return found.get(self.data_ids[run.digest])

    def prepare(self) -> list[Run]:
        """Says what is finished and queues what is not; gives the latter."""
        todo = []
        for run in self.runs.values():
            record = self.record(run)
            if record is None:
                todo.append(run)
            else:
                self.say(run, f"finished earlier{self.numbers(run, record)}")
        self.queue.fill(todo)
        return todo

    def work(self) -> None:
        """Trains waiting cells one after the other; a failure does not stop the next.

        Then waits for the cells that others train, to take them over should their workers die.
        """
        is_any_left = True
        while is_any_left:
            with self.queue.claim(set(self.runs)) as (trial, is_any_left):
                if trial is not None:
                    run = self.runs[trial.user_attrs["digest"]]
                    try:
                        record, line = self.run(run)
                    except Exception as error:
                        message = f"{type(error).__name__}: {' '.join(str(error).split())}"
                        self.queue.fail(trial, message)
                        self.say(run, f"FAILED: {message}")
                    except BaseException:  # stopped by a person or by Lightning
                        self.queue.fail(trial, "stopped")
                        raise
                    else:
                        self.queue.finish(trial, run, record, self.grid.objective)
                        self.say(run, line)
                elif is_any_left:
                    time.sleep(POLL_SECONDS)

    def run(self, run: Run) -> tuple[Record, str]:
        """The run's record and a line about it: found, if another command was quicker, or trained."""
        if (record := self.record(run)) is not None:
            return record, f"finished earlier{self.numbers(run, record)}"
        folder = run_dir(run.experiment, run.name)
        start = time.monotonic()
        try:
            record = train(run.experiment, run.name, folder)
        except Exception:
            with suppress(OSError):  # the disk may be full
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "error.txt").write_text(traceback.format_exc())
            raise
        return record, f"trained {duration(time.monotonic() - start)}{self.numbers(run, record)}"

    def numbers(self, run: Run, record: Record) -> str:
        """ ", util % 93.4, rFID 31.2": the first metrics of the table that the run is in."""
        known = [column for column in self.columns[run.digest] if column.metric in record["metrics"]]
        return "".join(f", {column.head} {shown(column, record)}" for column in known[:3])

    def say(self, run: Run, text: str) -> None:
        print(f"[{self.position[run.digest]}/{len(self.runs)}] {run.label}: {text}", flush=True)

    def report(self) -> int:
        """Lists what is missing; the exit status."""
        missing = [run for run in self.runs.values() if self.record(run) is None]
        errors = self.queue.errors()
        for run in missing:
            self.say(run, f"no result: {errors.get(run.digest, 'its worker ended before it was finished')}")
            log = self.output_dir / "experiments" / f"{run.name}_{run.digest}" / "error.txt"
            if log.is_file():
                print(f"    traceback: {log}", flush=True)
        total = len(self.runs)
        print(f"{self.grid.name}: {total - len(missing)} of {total} cells finished", flush=True)
        if missing:
            print("the same command tries the others again", flush=True)
        return 1 if missing else 0


def shown(column: ColumnSpec, record: Record) -> str:
    return format(record["metrics"][column.metric] * column.scale, column.format)


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def data_id(experiment: Experiment) -> str:
    """The id of the data that the experiment would be trained on now, as its record will name it."""
    return data_module(experiment).data_id


def data_resolver(data: str, data_dir: str, output_dir: str) -> Callable[[Experiment], Experiment]:
    """Puts data and folders into experiments. "auto" is decided once a data set, not once a cell."""
    words: dict[str, str] = {}

    def resolve(experiment: Experiment) -> Experiment:
        runtime = replace(experiment.runtime, data_dir=data_dir, output_dir=output_dir)
        experiment = replace(experiment, runtime=runtime)
        name = experiment.data.name
        if name not in words:
            words[name] = DATA_WORDS[resolve_data(experiment, data).data.name]
        return resolve_data(experiment, words[name])

    return resolve


def spawn_workers(count: int, arguments: list[str]) -> None:
    """The same command `count` times, each with its share of the CPU cores; waits for all."""
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "sweeps.run", *arguments, "--as-worker"]
    workers = [subprocess.Popen(command, env=environment) for _ in range(count)]
    try:
        for worker in workers:
            worker.wait()
    finally:
        for worker in workers:  # when we are stopped, so are they, unless the signal was for us alone
            with suppress(subprocess.TimeoutExpired):
                worker.wait(GRACE_SECONDS)
            worker.terminate()
            worker.wait()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.run",
        description="Train the cells of a sweep that have no result record yet. All cells are checked before "
        "the first is trained. Stopped (Ctrl-C) or killed, the same command continues; a finished cell is "
        "never trained again, whichever sweep asks for it.",
        epilog="Several machines share a sweep when they run this command with the same --output-dir on a "
        "shared disk; use --storage postgresql://... when its locks cannot be trusted. Keys are those of the "
        "experiment files, for example trainer.precision=bf16-mixed, and apply to every cell.",
    )
    parser.add_argument("file", help="sweep, for example sweeps/ablation_codebook.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every experiment")
    add_common_arguments(parser)
    parser.add_argument("--storage", default="journal", help="journal (a file in --output-dir) or a database URL")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cells (default: 1)")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """What `sweeps.run` and `sweeps.table` both take, so that one set of words names one set of cells."""
    parser.add_argument("--scale", default="quick", help="quick | reduced | paper (default: quick)")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | imagefolder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--output-dir", default="runs", help="records, checkpoints, tables (default: runs)")
    parser.add_argument("--seeds", default="", help="0,1,2 or a count (default: as the scale says)")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_intermixed_args(arguments)
    with user_errors():
        if options.workers < 1:
            raise ValueError(f"WORKERS={options.workers} must be at least 1")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a batch system's stop is like Ctrl-C
        resolve = data_resolver(options.data, options.data_dir, options.output_dir)
        grid = load_grid(options.file, options.scale, options.seeds, options.overrides).prepared(resolve)
        sweep = Sweep(grid, options.storage, Path(options.output_dir))
        if options.as_worker:
            sweep.work()
            return 0
        todo = sweep.prepare()
        for experiment in {run.experiment.data.name: run.experiment for run in todo}.values():
            data_module(experiment).prepare_data()  # data that cannot be had is one error now, not one a cell later
        workers = min(options.workers, len(todo))
        print(f"{grid.title}: {len(todo)} of {len(sweep.runs)} cells to train, scale {grid.scale}", flush=True)
        if workers > 1:
            words = {DATA_WORDS[run.experiment.data.name] for run in todo}
            decided = ["--data", *words] if len(words) == 1 else []  # the workers need not look for the data again
            spawn_workers(workers, [*arguments, *decided])
        else:
            sweep.work()
        return sweep.report()


if __name__ == "__main__":
    sys.exit(main())
