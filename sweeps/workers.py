"""What the commands of `sweeps` share: their arguments, the experiments that these name, and worker processes."""

import argparse
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from experiments.config.experiment import Experiment
from experiments.pipeline.build import data_module, resolve_data
from experiments.runtime.signals import follow_parent, wait_for
from sweeps.grid import Grid, load_grid
from sweeps.storage import database_url


def grid_of(options: argparse.Namespace) -> Grid:
    """The grid of the command's file, on the data and in the folders of its options."""
    grid = load_grid(options.file, options.scale, options.seeds, options.overrides)
    resolve = data_resolver(options.data, options.data_dir, options.output_dir)
    return grid if grid.spec.counted else grid.prepared(resolve)


def data_resolver(data: str, data_dir: str, output_dir: str) -> Callable[[Experiment], Experiment]:
    """Puts data and folders into experiments. "auto" is decided once a data set, not once a cell."""
    words: dict[str, str] = {}

    def resolve(experiment: Experiment) -> Experiment:
        runtime = replace(experiment.runtime, data_dir=data_dir, output_dir=output_dir)
        experiment = replace(experiment, runtime=runtime)
        name = experiment.data.name
        if name not in words:
            words[name] = resolve_data(experiment, data).data.name
        return resolve_data(experiment, words[name])

    return resolve


@contextmanager
def keep_traceback(run_dir: Path) -> Iterator[None]:
    """Leaves an error's traceback in the run's folder."""
    try:
        yield
    except Exception:
        with suppress(OSError):  # the disk may be full
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "error.txt").write_text(traceback.format_exc())
        raise


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def share(
    module: str, num_jobs: int, experiments: Iterable[Experiment], options: argparse.Namespace, work: Callable[[], None]
) -> None:
    """Runs `work`, or the command `module` in as many processes as `options` say, once its data is there."""
    by_name = {experiment.data.name: experiment for experiment in experiments}
    for experiment in by_name.values():
        data_module(experiment).prepare_data()  # data that cannot be had is one error now, not one a run later
    if (workers := min(options.workers, num_jobs)) == 1:
        work()
        return
    decided = ["--data", *by_name] if len(by_name) == 1 else []  # the workers need not look for the data again
    spawn_workers(module, workers, [*options.arguments, *decided], options.storage)


def spawn_workers(module: str, count: int, arguments: list[str], storage: str) -> None:
    """The command `count` times, each with its share of the CPU cores; waits for all, also when it is stopped."""
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "STORAGE": storage}
    command = [sys.executable, "-m", module, *arguments, "--as-worker"]
    wait_for([subprocess.Popen(command, env=environment) for _ in range(count)])


def parser_of(command: str, file: str, has_seeds: bool = True, **texts: str) -> argparse.ArgumentParser:
    """Of a command that takes a file, such as a sweep, and changes to its experiments.

    The options name the runs: taken by all commands of `sweeps`, so that one set of words names one set of cells.
    """
    parser = argparse.ArgumentParser(prog=f"python -m sweeps.{command}", **texts)  # type: ignore[arg-type]
    parser.add_argument("file", help=file)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every experiment")
    parser.add_argument("--scale", default="quick", help="quick | reduced | paper (default: quick)")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--output-dir", default="runs", help="records, checkpoints, tables (default: runs)")
    if has_seeds:
        parser.add_argument("--seeds", default="", help="0,1,2 or a count (default: as the scale says)")
    return parser


def parse_training(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command that trains, with those of its workers, and its `arguments` as they are."""
    parser.add_argument(
        "--storage",
        default=os.environ.get("STORAGE") or "journal",  # the environment's password is in no list of processes
        help="journal (a file in --output-dir) or a database URL (default: $STORAGE, or journal)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cells (default: 1)")
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    return parser.parse_intermixed_args(arguments, argparse.Namespace(arguments=arguments))


def begin(options: argparse.Namespace) -> None:
    """Raises ValueError for mistakes in the options, before any work. A worker stops with its command."""
    if options.workers < 1:
        raise ValueError(f"WORKERS={options.workers} must be at least 1")
    if options.storage != "journal":
        database_url(options.storage)
    if options.as_worker:
        follow_parent()
