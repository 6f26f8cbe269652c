"""Trains the cells of a sweep that have no result record yet.

python -m sweeps.run sweeps/ablation_codebook.yaml --scale quick
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runtime.errors import user_errors
from experiments.runtime.records import (
    PUBLISHED,
    Record,
    find_records,
    record_path,
    run_dir,
    same_experiment,
    size_and_seed,
    write_json,
)
from experiments.runtime.signals import follow_parent
from sweeps.grid import Grid, Run, load_grid
from sweeps.plan import PlanFile, full, state_of, table_grids
from sweeps.schema import ColumnSpec
from sweeps.workers import (
    add_common_arguments,
    add_worker_arguments,
    check_worker_arguments,
    duration,
    keep_traceback,
    spawn_workers,
    train,
)

if TYPE_CHECKING:
    from optuna.trial import Trial

    from experiments.config.experiment import Experiment
    from sweeps.study import Queue

DATA_WORDS = {"cifar10": "cifar10", "shapes": "shapes", "image_folder": "imagefolder"}


class Sweep:
    """A grid, its queue and its results. Prints one line a cell.

    `data_ids`: by digest, the id of the data that each run would be trained on now, as its record will name it.
    `published`: whether a record that the repository publishes makes a cell a finished one.
    """

    queue: "Queue"  # after `open_queue`

    def __init__(self, grid: Grid, data_ids: dict[str, str], output_dir: Path, published: bool = True) -> None:
        self.grid, self.data_ids, self.output_dir, self.published = grid, data_ids, output_dir, published
        self.runs = {run.digest: run for run in grid.runs}
        self.position = {digest: number for number, digest in enumerate(self.runs, 1)}
        self.columns = {
            run.digest: table.spec.columns for table in grid.tables for row in table.rows for run in row.runs
        }

    def record(self, run: Run) -> Record | None:
        """The finished record of this run on this data, ours or, if they count, a published one."""
        directories = [self.output_dir / "records", *([PUBLISHED] if self.published else [])]
        return find_records(run.experiment, directories).get(self.data_ids[run.digest])

    def unfinished(self) -> list[Run]:
        return [run for run in self.runs.values() if self.record(run) is None]

    def open_queue(self, storage: str) -> None:
        """Also fetches the records that are in the queue's database and not here."""
        from sweeps.study import Queue  # Optuna: a second or two

        data = "+".join(sorted(set(self.data_ids.values())))
        name = f"{self.grid.name}_{self.grid.scale}_{data}"
        name += "" if self.published else "_own"  # a worker to whom published records count would end these trials
        name += "_max" if self.grid.maximize else ""  # apart from a study that was begun to minimize
        direction = "maximize" if self.grid.maximize else "minimize"
        self.queue = Queue(name, storage, self.output_dir, direction=direction)
        self.fetch()

    def fetch(self) -> None:
        """Writes the records of cells that were finished on machines with other disks."""
        if todo := self.unfinished():
            records = self.queue.records()
            for run in todo:
                for record in records:
                    if record.get("data_id") == self.data_ids[run.digest] and same_experiment(record, run.experiment):
                        write_json(record_path(self.output_dir / "records", run.experiment, record["data_id"]), record)

    def prepare(self) -> list[Run]:
        """Says what is finished and queues what is not; gives the latter."""
        todo = []
        for run in self.runs.values():
            if (record := self.record(run)) is None:
                todo.append(run)
            else:
                self.say(run, f"finished earlier{self.numbers(run, record)}")
        if todo:
            jobs = {run.digest: {"cell": run.label, "experiment": run.name} for run in todo}
            self.queue.fill(jobs, params=lambda digest: {"cell": digest})
        return todo

    def work(self) -> None:
        """Trains waiting cells, then waits for those that others train."""
        self.queue.work(set(self.runs), self.run_trial, lambda trial, text: self.say(self.run_of(trial), text))

    def run_of(self, trial: "Trial") -> Run:
        return self.runs[trial.user_attrs["digest"]]

    def run_trial(self, trial: "Trial") -> None:
        run = self.run_of(trial)
        record, line = self.run(run)
        self.queue.finish(trial, **outcome(run, record, self.grid.objective, self.queue))
        self.say(run, line)

    def run(self, run: Run) -> tuple[Record, str]:
        """The run's record and a line about it: found, if another command was quicker, or trained."""
        if (record := self.record(run)) is not None:
            return record, f"finished earlier{self.numbers(run, record)}"
        start = time.monotonic()
        folder = self.folder(run)
        with keep_traceback(folder):
            record = train(full(run), run.name, folder)
        return record, f"trained {duration(time.monotonic() - start)}{self.numbers(run, record)}"

    def folder(self, run: Run) -> Path:
        return run_dir(self.output_dir, run.name, run.experiment, self.data_ids[run.digest])

    def numbers(self, run: Run, record: Record) -> str:
        """ ", util % 93.4, rFID 31.2": the first metrics of the table that the run is in."""
        known = [column for column in self.columns[run.digest] if column.metric in record["metrics"]]
        return "".join(f", {column.head} {shown(column, record)}" for column in known[:3])

    def say(self, run: Run, text: str) -> None:
        print(f"[{self.position[run.digest]}/{len(self.runs)}] {run.label}: {text}", flush=True)

    def report(self) -> int:
        """Lists what is missing; the exit status."""
        if self.unfinished():
            self.fetch()
        missing = self.unfinished()
        errors = self.queue.errors() if missing else {}
        for run in missing:
            self.say(run, f"no result: {errors.get(run.digest, 'its worker ended before it was finished')}")
            if (log := self.folder(run) / "error.txt").is_file():
                print(f"    traceback: {log}", flush=True)
        total = len(self.runs)
        print(f"{self.grid.name}: {total - len(missing)} of {total} cells finished", flush=True)
        if missing:
            print("the same command tries the others again", flush=True)
        return 1 if missing else 0


def shown(column: ColumnSpec, record: Record) -> str:
    return format(record["metrics"][column.metric] * column.scale, column.format)


def outcome(run: Run, record: Record, objective: str, queue: "Queue") -> dict[str, Any]:
    """What `Queue.finish` stores of a record."""
    attributes = record["metrics"] | ({} if queue.is_journal else {"record": record})
    value = float(record["metrics"].get(objective, math.nan))
    return {"value": value, "attributes": attributes, "params": size_and_seed(run.experiment)}


def data_resolver(data: str, data_dir: str, output_dir: str) -> Callable[["Experiment"], "Experiment"]:
    """Puts data and folders into experiments. "auto" is decided once a data set, not once a cell."""
    from experiments.pipeline.build import resolve_data

    words: dict[str, str] = {}

    def resolve(experiment: "Experiment") -> "Experiment":
        runtime = replace(experiment.runtime, data_dir=data_dir, output_dir=output_dir)
        experiment = replace(experiment, runtime=runtime)
        name = experiment.data.name
        if name not in words:
            words[name] = DATA_WORDS[resolve_data(experiment, data).data.name]
        return resolve_data(experiment, words[name])

    return resolve


def open_sweep(options: argparse.Namespace) -> Sweep:
    """From the plan of the last time, if it holds; else from the sweep file, with the imports that takes."""
    output_dir, state = Path(options.output_dir), state_of(options.data_dir)
    if (kept := plan_file(options, options.data).read(state)) is not None:
        return Sweep(*kept, output_dir, options.published)

    from experiments.pipeline.inputs import Seen, inputs_of

    recipes = load_grid(options.file, options.scale, options.seeds, options.overrides)
    grid = recipes.prepared(data_resolver(options.data, options.data_dir, options.output_dir))
    seen: Seen = {}
    data_ids = {run.digest: inputs_of(run.experiment, seen).data_id for run in grid.runs}
    words = data_words(grid)
    is_stand_in = options.data == "auto" and words != data_words(recipes)  # next time the real data may be there
    for word in {options.data} - {"auto" if is_stand_in else ""} | (words if len(words) == 1 else set()):
        plan_file(options, word).write(grid, data_ids, state_of(options.data_dir))
    if not options.as_worker:
        table_grids(output_dir, options.file, options.scale, options.seeds, options.overrides, options.data, recipes)
    return Sweep(grid, data_ids, output_dir, options.published)


def plan_file(options: argparse.Namespace, data: str) -> PlanFile:
    question = {key: getattr(options, key) for key in ("seeds", "overrides", "data_dir", "output_dir")}
    return PlanFile(Path(options.output_dir), options.file, options.scale, question | {"data": data})


def data_words(grid: Grid) -> set[str]:
    return {DATA_WORDS[run.experiment.data.name] for run in grid.runs}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.run",
        description="Train the cells of a sweep that have no result record yet. All cells are checked before "
        "the first is trained. Stopped (Ctrl-C) or killed, the same command continues; a finished cell is "
        "never trained again, whichever sweep asks for it.",
        epilog="Several machines share a sweep when they run this command with the same --storage postgresql://... or "
        "the same --output-dir on a shared disk whose locks can be trusted: docs/sweeps.md. Keys are those of the "
        "experiment files, for example trainer.precision=bf16-mixed, and apply to every cell.",
    )
    parser.add_argument("file", help="sweep, for example sweeps/ablation_codebook.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every experiment")
    add_common_arguments(parser)
    add_seeds(parser)
    add_worker_arguments(parser)
    parser.add_argument(
        "--published",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether cells of published records are finished (default: yes; the records hold no weights)",
    )
    return parser


def add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", default="", help="0,1,2 or a count (default: as the scale says)")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_intermixed_args(arguments)
    with user_errors():
        check_worker_arguments(options)
        if options.as_worker:
            follow_parent()
        sweep = open_sweep(options)
        if options.as_worker or sweep.unfinished():
            sweep.open_queue(options.storage)
        if options.as_worker:
            sweep.work()
            return 0
        todo = sweep.prepare()
        print(f"{sweep.grid.title}: {len(todo)} of {len(sweep.runs)} cells to train, scale {options.scale}", flush=True)
        if todo:
            train_cells(sweep, todo, options, arguments)
        return sweep.report()


def train_cells(sweep: Sweep, todo: list[Run], options: argparse.Namespace, arguments: list[str]) -> None:
    from experiments.pipeline.build import data_module

    experiments = {run.experiment.data.name: full(run) for run in todo}
    for experiment in experiments.values():
        data_module(experiment).prepare_data()  # data that cannot be had is one error now, not one a cell later
    workers = min(options.workers, len(todo))
    if workers > 1:
        words = {DATA_WORDS[name] for name in experiments}
        decided = ["--data", *words] if len(words) == 1 else []  # the workers need not look for the data again
        spawn_workers("sweeps.run", workers, [*arguments, *decided], options.storage)
    else:
        sweep.work()


if __name__ == "__main__":
    sys.exit(main())
