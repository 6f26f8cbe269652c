"""Trains the cells of a sweep that have no result record yet, then renders its tables.

python -m sweeps.run sweeps/ablation_codebook.yaml --scale quick
"""

import math
import sys
import time
from argparse import BooleanOptionalAction
from pathlib import Path

from optuna.trial import Trial

from experiments.config.identity import digest_of
from experiments.pipeline.inputs import Seen, inputs_of
from experiments.pipeline.training import train_apart as train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.errors import user_errors
from experiments.runtime.files import write_json
from experiments.runtime.records import PUBLISHED, Record, data_name, find_records, record_path, same_experiment
from sweeps.grid import Grid, Run
from sweeps.queue import Queue, job_of
from sweeps.table import render_grid
from sweeps.workers import begin, duration, grid_of, keep_traceback, parse_training, parser_of, share


class Sweep:
    """A grid, its queue and its results, in `output_dir`. Prints one line a cell.

    The grid's experiments are on the data that they would be trained on now. `published`: whether a record that the
    repository publishes makes a cell a finished one.
    """

    queue: Queue  # after `open_queue`

    def __init__(self, grid: Grid, output_dir: Path, published: bool = True) -> None:
        self.grid, self.output_dir, self.published = grid, output_dir, published
        self.runs = {run.digest: run for run in grid.runs}
        self.columns = {
            run.digest: table.spec.columns for table in grid.tables for row in table.rows for run in row.runs
        }
        seen: Seen = {}  # cells share their data
        self.data_ids = {digest: inputs_of(run.experiment, seen).data_id for digest, run in self.runs.items()}

    def record(self, run: Run) -> Record | None:
        """The finished record of this run on this data; a published one, if those count."""
        directories = [self.output_dir / "records", *([PUBLISHED] if self.published else [])]
        return find_records(run.experiment, directories).get(self.data_ids[run.digest])

    def unfinished(self) -> list[Run]:
        return [run for run in self.runs.values() if self.record(run) is None]

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
        direction = "maximize" if self.grid.spec.maximize else "minimize"
        self.queue = Queue(self.study_name, storage, self.output_dir, direction=direction)
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

    def prepare(self) -> list[Run]:
        """Says what is finished and queues what is not; gives the latter."""
        todo = self.unfinished()
        for run in self.runs.values():
            if record := self.record(run):
                self.say(run, f"finished earlier{self.numbers(run, record)}")
        if todo:
            self.queue.fill({run.digest: self.job(run) for run in todo})
        return todo

    def job(self, run: Run) -> dict[str, str]:
        """The trial's attributes, for the queue and for people."""
        folder = self.folder(run).relative_to(self.output_dir)
        return {"cell": run.label, "experiment": run.name, "folder": str(folder)}

    def work(self) -> None:
        """Trains waiting cells, then waits for those that others train."""
        self.queue.work(set(self.runs), self.run, lambda trial, text: self.say(self.runs[job_of(trial)], text))

    def run(self, trial: Trial) -> None:
        """Trains the trial's cell, unless another command was quicker."""
        run, start = self.runs[job_of(trial)], time.monotonic()
        record, words = self.record(run), "finished earlier"
        if record is None:
            with keep_traceback(folder := self.folder(run)):
                record = train(run.experiment, run.name, folder)
            words = f"trained {duration(time.monotonic() - start)}"
        value = float(record["metrics"].get(self.grid.spec.objective, math.nan))
        attributes = record["metrics"] | ({} if self.queue.is_journal else {"record": record})
        sizes = {"codebook_size": getattr(run.experiment.bottom.model, "codebook_size", 0), "seed": run.experiment.seed}
        self.queue.finish(trial, value, attributes, sizes)
        self.say(run, words + self.numbers(run, record))

    def folder(self, run: Run) -> Path:
        return run_dir(run.experiment, run.name, self.data_ids[run.digest])

    def numbers(self, run: Run, record: Record) -> str:
        """ ", util % 93.4, rFID 31.2": the first metrics of the table that the run is in."""
        metrics = record["metrics"]
        measured = [column for column in self.columns[run.digest] if column.metric in metrics]
        return "".join(f", {c.head} {format(metrics[c.metric] * c.scale, c.format)}" for c in measured[:3])

    def say(self, run: Run, text: str) -> None:
        print(f"[{list(self.runs).index(run.digest) + 1}/{len(self.runs)}] {run.label}: {text}", flush=True)

    def report(self) -> int:
        """Lists what is missing; the exit status."""
        self.fetch()
        missing = self.unfinished()
        errors = self.queue.errors() if missing else {}
        for run in missing:
            self.say(run, f"no result: {errors.get(run.digest, 'its worker ended before it was finished')}")
            if (log := self.folder(run) / "error.txt").is_file():
                print(f"    traceback: {log}", flush=True)
        print(f"{self.grid.name}: {len(self.runs) - len(missing)} of {len(self.runs)} cells finished", flush=True)
        if missing:
            print("the same command tries the others again", flush=True)
        return 1 if missing else 0


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "run",
        "sweep, for example sweeps/ablation_codebook.yaml",
        description="Train the cells of a sweep that have no result record yet, then render its tables. All cells are "
        "checked before the first is trained. Stopped (Ctrl-C) or killed, the same command continues; a finished cell "
        "is never trained again, whichever sweep asks for it.",
        epilog="Several machines share a sweep when they run this command with the same --storage postgresql://... or "
        "the same --output-dir on a shared disk whose locks can be trusted: docs/sweeps.md. Keys are those of the "
        "experiment files, for example trainer.precision=bf16-mixed, and apply to every cell.",
    )
    parser.add_argument(
        "--published",
        action=BooleanOptionalAction,
        default=True,
        help="whether cells of published records are finished (default: yes; the records hold no weights)",
    )
    options = parse_training(parser, arguments)
    with user_errors():
        begin(options)
        output_dir = Path(options.output_dir)
        grid = grid_of(options)
        if grid.spec.counted:
            render_grid(grid, output_dir, output_dir / "tables")
            return 0
        sweep = Sweep(grid, output_dir, options.published)
        if options.as_worker or sweep.unfinished():
            sweep.open_queue(options.storage)
        if options.as_worker:
            sweep.work()
            return 0
        todo = sweep.prepare()
        print(f"{grid.spec.title}: {len(todo)} of {len(sweep.runs)} cells to train, scale {options.scale}", flush=True)
        if todo:
            share("sweeps.run", len(todo), (run.experiment for run in todo), options, sweep.work)
        status = sweep.report()
        render_grid(grid, output_dir, output_dir / "tables")
        return status


if __name__ == "__main__":
    sys.exit(main())
