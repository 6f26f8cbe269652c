"""What the commands of `sweeps` share: their arguments, the experiments that these name, and worker processes."""

import argparse
import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from experiments.config.experiment import Experiment
from experiments.pipeline.build import data_module, resolve_data
from experiments.runtime import progress
from experiments.runtime.signals import Stopped, follow_parent, stopping_at, wait_for
from sweeps.grid import Grid, load_grid
from sweeps.storage import database_url

DEVICE_SHARE = 0.92  # of a GPU's memory for the tensors of all workers; the rest is for their contexts and kernels


def grids_of(options: argparse.Namespace) -> list[Grid]:
    """The grids of the command's files, on the data and in the folders of its options."""
    items = [options.file, *options.overrides]
    keys = [item for item in items if "=" in item]
    grids = [load_grid(item, options.scale, options.seeds, keys) for item in items if "=" not in item]
    resolve = data_resolver(options.data, options.data_dir, options.output_dir)
    return [grid if grid.spec.counted else grid.prepared(resolve) for grid in grids]


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


class Budget:
    """Until when runs may be trained, in `time.time()`; inf = without end."""

    def __init__(self, minutes: float, until: float | None = None) -> None:
        """`until`: of a budget that has begun in another process."""
        self.until = until or (time.time() + 60 * minutes if minutes else math.inf)
        self.begun = self.until - 60 * minutes

    def fits(self, name: str, finished: Sequence[tuple[str, float]]) -> bool:
        """Whether a run of experiment `name` would end in time, by the (name, seconds) of those that are finished.

        The median of its own experiment counts, else that of all. While none is finished there is nothing to expect.
        """
        seconds = [took for other, took in finished if other == name] or [took for _, took in finished]
        return time.time() + (median(seconds) if seconds else 0.0) < self.until

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """At the end of the budget what runs in this context is stopped as by SIGTERM, which saves it."""
        with nullcontext() if math.isinf(self.until) else stopping_at(self.until):
            yield

    @contextmanager
    def enough(self) -> Iterator[None]:
        """Such a stop ends this context, and nothing else."""
        try:
            yield
        except Stopped:
            if time.time() < self.until:
                raise


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
    if options.minutes:
        decided += ["--until", repr(options.budget.until)]
    spawn_workers(module, workers, [*options.arguments, *decided], options.storage)


def spawn_workers(module: str, count: int, arguments: list[str], storage: str) -> None:
    """The command `count` times, each with its share of the CPU cores; waits for all, also when it is stopped."""
    threads = max(1, (os.cpu_count() or 1) // count)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "STORAGE": storage}
    command = [sys.executable, "-m", module, *arguments, "--as-worker"]
    wait_for([subprocess.Popen(command, env=environment) for _ in range(count)])


def begin(options: argparse.Namespace) -> None:
    """Raises ValueError for mistakes in the options, before any work. A worker stops with its command.

    Begins the budget of `--minutes`; workers share the memory of a GPU evenly.
    """
    if options.workers < 1:
        raise ValueError(f"WORKERS={options.workers} must be at least 1")
    if not 0 <= options.minutes < math.inf:
        raise ValueError(f"--minutes {options.minutes}: must be a number from 0 (no limit) on")
    if options.storage != "journal":
        database_url(options.storage)
    options.budget = Budget(options.minutes, options.until)
    if options.as_worker:
        follow_parent()
        progress.num_concurrent = options.workers
        if torch.cuda.is_available():  # so that a run that grows too large fails alone
            torch.cuda.set_per_process_memory_fraction(DEVICE_SHARE / options.workers)
