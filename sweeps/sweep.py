"""A sweep while it is trained: its cells, its queue, its records, and what is printed of them."""

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, Trial

from experiments.config.compose import as_yaml
from experiments.config.identity import digest_of
from experiments.pipeline.inputs import Seen, inputs_of
from experiments.pipeline.training import train_apart as train
from experiments.pipeline.upstream import run_dir
from experiments.pipeline.weights import can_wait, weights_path
from experiments.runtime import progress
from experiments.runtime.files import write_json
from experiments.runtime.health import releasing_memory
from experiments.runtime.records import PUBLISHED, Record, data_name, find_records, record_path, same_experiment
from sweeps.grid import Grid, Run, label_of
from sweeps.measure import head_of
from sweeps.queue import Lot, Queue, job_of, work
from sweeps.tables import render_grid
from sweeps.workers import Budget, begin, duration, grids_of, keep_traceback, share


class Sweep:
    """A grid, its queue and its results, in `output_dir`. Prints one line a cell.

    The grid's experiments are on the data that they would be trained on now. `published`: whether a record that the
    repository publishes makes a cell a finished one. `only`: see `Grid.chosen`.
    """

    queue: Queue  # after `open_queue`

    def __init__(self, grid: Grid, output_dir: Path, published: bool = True, only: Sequence[str] = ()) -> None:
        self.grid, self.output_dir, self.published = grid, output_dir, published
        self.runs = {run.digest: run for run in grid.runs}
        self.budget, self.is_shared = Budget(0), False  # whether other processes print lines between ours
        self.columns = {
            run.digest: table.spec.columns for table in grid.tables for row in table.rows for run in row.runs
        }
        seen: Seen = {}  # cells share their data
        self.data_ids = {digest: inputs_of(run.experiment, seen).data_id for digest, run in self.runs.items()}
        if only:
            self.runs = {run.digest: run for run in grid.chosen(only)}

    def record(self, run: Run) -> Record | None:
        """The finished record of this run on this data; a published one, if those count."""
        directories = [self.output_dir / "records", *([PUBLISHED] if self.published else [])]
        return find_records(run.experiment, directories).get(self.data_ids[run.digest])

    def unfinished(self) -> list[Run]:
        return [run for run in self.runs.values() if self.record(run) is None and not self.waits(run)]

    def waits(self, run: Run) -> bool:
        """Whether it is trained and is to be evaluated later."""
        return can_wait(run.experiment) and self.is_trained(run)

    def is_trained(self, run: Run) -> bool:
        """Whether its weights are kept."""
        return run.experiment.upstream is None and self.weights(run).is_file()

    def weights(self, run: Run) -> Path:
        return weights_path(run.experiment, self.data_ids[run.digest])

    @property
    def study_name(self) -> str:
        """Sweep, scale, data and a digest of all that makes trials comparable: another objective is another study.

        Workers that count published records apart from others: the former would end the trials of the latter.
        """
        data, spec = sorted(set(self.data_ids.values())), self.grid.spec
        digest = digest_of([spec.objective, spec.maximize, data, self.published])
        return f"{self.grid.name}_{self.grid.scale}_{'+'.join(map(data_name, data))}_{digest}"

    def open_queue(self, storage: str) -> None:
        """Also fetches the records that are in the queue's database and not here."""
        spec = self.grid.spec
        direction = "maximize" if spec.maximize else "minimize"
        self.queue = Queue(self.study_name, storage, self.output_dir, spec.objective, direction=direction)
        self.fetch()

    def fetch(self) -> None:
        """Writes the records of cells that were finished on machines with other disks."""
        todo = self.unfinished()
        for record in self.queue.records() if todo else []:
            for run in todo:
                data_id = self.data_ids[run.digest]
                if record.get("data_id") == data_id and same_experiment(record, run.experiment):
                    path = record_path(self.output_dir / "records", run.experiment, data_id)
                    write_json(path, record)

    def say_all(self, missing: bool = True) -> None:
        """What is finished and, with `missing`, what is to be trained."""
        for run in self.runs.values():
            if record := self.record(run):
                self.say(run, f"finished earlier{self.numbers(run, record)}")
            elif self.is_trained(run):
                self.say(run, f"trained earlier, to be evaluated: {self.weights(run)}")
            elif missing:
                self.say(run, f"to be trained: {self.folder(run)}")

    def prepare(self) -> list[Run]:
        """Says what is finished and queues what is not; gives the latter."""
        todo = self.unfinished()
        self.say_all(missing=False)
        if todo:
            self.queue.fill({run.digest: self.job(run) for run in todo})
        return todo

    def job(self, run: Run) -> dict[str, str]:
        """The trial's attributes, for the queue and for people."""
        folder = self.folder(run).relative_to(self.output_dir)
        return {"cell": run.label, "experiment": run.name, "folder": str(folder)}

    def lot(self, seed: int) -> Lot:
        """The cells of one seed, for `work`."""
        digests = {digest for digest, run in self.runs.items() if run.experiment.seed == seed}
        return Lot(self.queue, lambda: self.that_fit(digests), self.run, self.tell)

    def that_fit(self, digests: set[str]) -> set[str]:
        """Those that would end within the budget."""
        if math.isinf(self.budget.until):
            return digests
        finished = self.queue.seconds(self.budget.begun)
        return {digest for digest in digests if self.budget.fits(self.runs[digest].name, finished)}

    def tell(self, trial: Trial | FrozenTrial, text: str) -> None:
        self.say(self.of(trial), text)

    def of(self, trial: Trial | FrozenTrial) -> Run:
        return self.runs[job_of(trial)]

    def run(self, trial: Trial) -> None:
        """Trains the trial's cell, unless another command was quicker."""
        run, start = self.of(trial), time.monotonic()
        record, words, took = self.record(run), "finished earlier", {}
        if record is None:
            progress.prefix = f"[{self.number(run)}] " if self.is_shared else ""
            if self.is_shared:
                self.say(run, "begins")
            with releasing_memory(), keep_traceback(folder := self.folder(run)), self.budget.stopping():
                record = train(run.experiment, run.name, folder)
                took = {"seconds": time.monotonic() - start}
            words = f"trained {duration(took['seconds'])}" + ", to be evaluated" * self.waits(run)
        value = float(record["metrics"].get(self.grid.spec.objective, math.nan))
        is_shared = not self.queue.is_journal and not self.waits(run)
        attributes = record["metrics"] | took | ({"record": record} if is_shared else {})
        sizes = {"codebook_size": getattr(run.experiment.bottom.model, "codebook_size", 0), "seed": run.experiment.seed}
        self.queue.finish(trial, value, attributes, sizes)
        self.say(run, words + self.numbers(run, record))

    def folder(self, run: Run) -> Path:
        return run_dir(run.experiment, run.name, self.data_ids[run.digest])

    def numbers(self, run: Run, record: Record) -> str:
        """ ", util % 93.4, rFID 31.2": the first metrics of the table that the run is in."""
        metrics, protocols = record["metrics"], record["protocols"]
        measured = [column for column in self.columns[run.digest] if column.metric in metrics]
        return "".join(
            f", {head_of(c.head, protocols.get(c.metric, ''))} {format(metrics[c.metric] * c.scale, c.format)}"
            for c in measured[:3]
        )

    def say(self, run: Run, text: str) -> None:
        print(f"[{self.number(run)}] {run.label}: {text}", flush=True)

    def number(self, run: Run) -> str:
        return f"{list(self.runs).index(run.digest) + 1}/{len(self.runs)}"

    def report(self) -> int:
        """Lists what is missing; the exit status, 0 also where only the budget's end has left something."""
        self.fetch()
        missing = self.unfinished()
        errors = self.queue.errors() if missing else {}
        is_over = time.time() >= self.budget.until or not self.that_fit({run.digest for run in missing})
        is_failed = False
        for run in missing:
            if run.digest not in errors and is_over:
                self.say(run, "left, the time is up")
                continue
            is_failed = True
            self.say(run, f"no result: {errors.get(run.digest, 'its worker ended before it was finished')}")
            if (log := self.folder(run) / "error.txt").is_file():
                print(f"    traceback: {log}", flush=True)
        done = f"{len(self.runs) - len(missing)} of {len(self.runs)} cells"
        is_any_waiting = any(self.record(run) is None and self.waits(run) for run in self.runs.values())
        words = "trained; without --evaluate-later they are evaluated, on any machine" if is_any_waiting else "finished"
        print(f"{self.grid.name}: {done} {words}", flush=True)
        if missing:
            print("the same command tries the others again", flush=True)
        return 1 if is_failed else 0


def run(options: argparse.Namespace) -> int:
    """What the command does; the exit status. Raises ValueError for mistakes before any work."""
    begin(options)
    if options.evaluate_only and options.evaluate_later:
        raise ValueError("--evaluate-only and --evaluate-later exclude each other")
    output_dir = Path(options.output_dir)
    grids = grids_of(options)
    trained = [grid for grid in grids if not grid.spec.counted]
    for pattern in options.only:
        if not any(grid.chosen([pattern]) for grid in trained):
            raise ValueError(f"--only '{pattern}': no row matches; for example {example(trained)}")
    if options.print_config:
        for run in (run for grid in trained for run in (grid.chosen(options.only) if options.only else grid.runs)):
            print(f"---\n# {run.label}\n{as_yaml(run.experiment, run.name)}", end="")
        return 0
    sweeps = [Sweep(grid, output_dir, options.published, options.only) for grid in trained]
    for sweep in sweeps:
        sweep.budget, sweep.is_shared = options.budget, options.as_worker
        if options.evaluate_only:
            sweep.runs = {digest: run for digest, run in sweep.runs.items() if sweep.is_trained(run)}
        if options.dry_run:
            sweep.say_all()
        elif sweep.unfinished():
            sweep.open_queue(options.storage)
    if options.dry_run:
        return 0
    if options.as_worker:
        work_on(sweeps, options.budget)
        return 0
    status = train_missing(sweeps, options)
    for grid in grids:
        render_grid(grid, output_dir, output_dir / "tables")
    return status


def example(grids: list[Grid]) -> str:
    return next((f"'{table.spec.id}/{label_of(table.rows[0].heads)}'" for grid in grids for table in grid.tables), "")


def train_missing(sweeps: list[Sweep], options: argparse.Namespace) -> int:
    """Trains what is missing of all sweeps, by as many processes as `options` say; the exit status."""
    todo: list[Run] = []
    for sweep in sweeps:
        missing = sweep.prepare()
        todo += missing
        title = f"{sweep.grid.spec.title}: {len(missing)} of {len(sweep.runs)} cells to train"
        print(f"{title}, scale {options.scale}", flush=True)
    if todo:
        experiments = [run.experiment for run in todo]
        share("sweeps.run", len(todo), experiments, options, lambda: work_on(sweeps, options.budget))
    return max((sweep.report() for sweep in sweeps), default=0)


def work_on(sweeps: list[Sweep], budget: Budget) -> None:
    """Trains waiting cells of all sweeps, those of the first seed first, then waits for those that others train."""
    sweeps = [sweep for sweep in sweeps if sweep.unfinished()]
    seeds = sorted({run.experiment.seed for sweep in sweeps for run in sweep.runs.values()})
    with budget.enough():
        work([sweep.lot(seed) for seed in seeds for sweep in sweeps])
