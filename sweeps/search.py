"""Searches the best values of some keys of one recipe: Optuna's TPE, with a median pruner.

python -m sweeps.search sweeps/search_vqgan_lc.yaml --scale quick --trials 20
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.compose import compose, parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist
from experiments.pipeline.build import data_module
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.upstream import run_dir
from experiments.runtime.errors import user_errors
from experiments.runtime.signals import follow_parent
from sweeps.grid import load_scale, nest, recipe_values, sweep_name
from sweeps.pruning import Report
from sweeps.run import DATA_WORDS, data_resolver
from sweeps.schema import ParameterSpec, SearchSpec, check_search, read_spec
from sweeps.study import OPEN, Queue, digest_of
from sweeps.trials import write_trials
from sweeps.workers import (
    add_common_arguments,
    add_worker_arguments,
    check_worker_arguments,
    duration,
    keep_traceback,
    spawn_workers,
    train,
)


class Search:
    """A search's study and its trials. `experiment_of` makes the experiment of a trial's parameters."""

    def __init__(
        self,
        spec: SearchSpec,
        name: str,
        experiment_of: Callable[[dict[str, Any]], Experiment],
        storage: str,
        output_dir: Path,
    ) -> None:
        self.spec, self.experiment_of = spec, experiment_of
        self.name = name
        self.first = experiment_of(corner(spec, 0))
        self.data_id = inputs_of(self.first).data_id
        interval = self.first.trainer.validate_every
        self.queue = Queue(
            f"{name}_{self.data_id}",
            storage,
            output_dir,
            direction="maximize" if spec.maximize else "minimize",
            pruner=optuna.pruners.MedianPruner(spec.startup_trials, spec.warmup_validations * interval),
        )

    def fill(self, count: int) -> list[str]:
        """Queues what is missing of `count` trials, failed ones with new values; gives their names."""
        newest = {digest_of(trial): trial.state for trial in self.queue.patiently(self.queue.trials)}
        names = [f"{self.queue.name}.{number:04}" for number in range(count)]
        settled = (TrialState.COMPLETE, TrialState.PRUNED, *OPEN)
        self.queue.fill({name: {} for name in names if newest.get(name) not in settled}, params=lambda name: {})
        return [name for name in names if newest.get(name) not in (TrialState.COMPLETE, TrialState.PRUNED)]

    def work(self, names: Sequence[str]) -> None:
        """Runs waiting trials, then waits for those that others run."""
        self.queue.work(set(names), self.run, say)

    def run(self, trial: Trial) -> None:
        params = self.queue.patiently(lambda: self.suggest(trial))
        experiment = self.experiment_of(params)
        folder = run_dir(experiment, self.name)
        report = Report(trial, self.spec.metric, experiment.trainer.max_steps, self.queue.patiently)
        start, shown = time.monotonic(), show_params(params)
        with keep_traceback(folder):
            try:
                record = train(experiment, self.name, folder, callbacks=[report])
            except optuna.TrialPruned as pruned:
                self.queue.fail(trial, str(pruned), TrialState.PRUNED)
                say(trial, f"{shown}: pruned after {duration(time.monotonic() - start)}, {pruned}")
                return
            if self.spec.metric not in record["metrics"]:
                known = ", ".join(sorted(record["metrics"]))
                raise ValueError(f"metric={self.spec.metric} is none of this model's: {known}")
            value = record["metrics"][self.spec.metric]
            if math.isnan(value):
                raise FloatingPointError(f"{self.spec.metric} is not a number")
        attributes = record["metrics"] | {
            "run": folder.name,
            "steps": experiment.trainer.max_steps,
            "protocol": record["protocols"].get(self.spec.metric, "not stated"),
        }
        self.queue.finish(trial, value, attributes, {})
        say(trial, f"{shown}: {self.spec.metric} {value:.4g} after {duration(time.monotonic() - start)}")

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The trial's parameters. The sampler's seed is the trial's own, so a search that is stopped goes on as if it
        had not been, and workers that start together do not draw the same."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.queue.study.sampler = optuna.samplers.TPESampler(
                n_startup_trials=self.spec.startup_trials,
                constant_liar=True,  # two workers do not try the same corner
                seed=self.spec.seed + trial.number,
            )
        return {key: suggest(trial, key, parameter) for key, parameter in self.spec.space.items()}


def suggest(trial: Trial, key: str, parameter: ParameterSpec) -> Any:
    if parameter.choices:
        return trial.suggest_categorical(key, parameter.choices)
    assert parameter.low is not None and parameter.high is not None  # check_search
    if parameter.integer:
        return trial.suggest_int(key, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(key, parameter.low, parameter.high, log=parameter.log)


def corner(spec: SearchSpec, end: int) -> dict[str, Any]:
    """The lowest (0) or highest (-1) value of every parameter."""

    def value(parameter: ParameterSpec) -> Any:
        if parameter.choices:
            return parameter.choices[end]
        number = (parameter.low, parameter.high)[end]
        return int(number or 0) if parameter.integer else number

    return {key: value(parameter) for key, parameter in spec.space.items()}


def show_params(params: dict[str, Any]) -> str:
    return ", ".join(
        f"{key.rsplit('.', 1)[-1]}={value:.3g}" if isinstance(value, float) else f"{key.rsplit('.', 1)[-1]}={value}"
        for key, value in params.items()
    )


def say(trial: Trial | FrozenTrial, text: str) -> None:
    print(f"[trial {trial.number}] {text}", flush=True)


def load_search(path: Path, scale: str, overrides: Sequence[str]) -> tuple[SearchSpec, Callable[..., Experiment]]:
    """The search and what makes an experiment of parameters. Raises ValueError that names file and key."""
    spec, overlay = read_spec(path, SearchSpec), load_scale(scale)
    check_search(spec, path)
    name, files = f"{spec.experiment}_{overlay.experiments}", {}  # type: ignore[var-annotated]

    def experiment_of(params: dict[str, Any]) -> Experiment:
        try:
            values = compose(recipe_values(name, nest(spec.set | params), overlay, files), from_dotlist(overrides))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        experiment = parse(values, f"{path} ({name}.yaml, {show_params(params)})")
        steps = experiment.trainer.max_steps
        trainer = replace(experiment.trainer, validate_every=max(1, steps // spec.validations))
        return replace(experiment, trainer=trainer)

    for end in (0, -1):  # a mistake is named before any work
        experiment_of(corner(spec, end))
    return spec, experiment_of


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.search",
        description="Search the best values of some keys of a recipe by Optuna's TPE; a median pruner ends trials that "
        "are worse than usual. Then, and when there is nothing to do, a table and pictures of the trials are written.",
        epilog="Stopped or killed, the same command continues; with more --trials it goes on from what it knows. Any "
        "number of workers and machines share a search, as they do a sweep: docs/sweeps.md.",
    )
    parser.add_argument("file", help="search, for example sweeps/search_vqgan_lc.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every trial")
    add_common_arguments(parser)
    add_worker_arguments(parser)
    parser.add_argument("--trials", type=int, default=0, help="trials in all (default: as the file says)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    options = build_parser().parse_intermixed_args(arguments)
    with user_errors():
        check_worker_arguments(options)
        if options.as_worker:
            follow_parent()
        path, output_dir = Path(options.file), Path(options.output_dir)
        spec, experiment_of = load_search(path, options.scale, options.overrides)
        resolve = data_resolver(options.data, options.data_dir, options.output_dir)
        name = f"{sweep_name(path)}_{options.scale}"
        search = Search(spec, name, lambda params: resolve(experiment_of(params)), options.storage, output_dir)
        count = options.trials or spec.trials
        names = search.fill(count)
        if options.as_worker:
            search.work(names)
            return 0
        print(f"{spec.title}: {len(names)} of {count} trials to run, scale {options.scale}", flush=True)
        if names:
            data_module(search.first).prepare_data()
            if (workers := min(options.workers, len(names))) > 1:
                decided = ["--data", DATA_WORDS[search.first.data.name]]
                spawn_workers("sweeps.search", workers, [*arguments, *decided], options.storage)
            else:
                search.work(names)
        return write_trials(search.queue.study, spec, options.scale, search.data_id, output_dir / "tables")


if __name__ == "__main__":
    sys.exit(main())
