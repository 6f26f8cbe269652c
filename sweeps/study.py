"""A search while it runs: its space, its trials, and what ends hopeless ones."""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config.compose import as_yaml, compose, parse
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of
from experiments.config.values import flatten, from_dotlist
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.training import train_apart as train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.records import data_name
from sweeps.grid import load_scale, nest, recipe_values, sweep_name
from sweeps.queue import OPEN, Lot, Queue, job_of, work
from sweeps.schema import SearchSpec, find_sweep, naming, read_spec
from sweeps.trials import write_trials
from sweeps.workers import begin, data_resolver, duration, keep_traceback, share

ExperimentOf = Callable[[dict[str, Any]], Experiment]


class Search:
    """A search's study and its trials. `experiment_of` makes the experiment of a trial's parameters."""

    def __init__(self, spec: SearchSpec, name: str, experiment_of: ExperimentOf, storage: str, folder: Path) -> None:
        self.spec, self.name, self.experiment_of = spec, name, experiment_of
        self.first = experiment_of(corner(spec, 0))
        self.data_id = inputs_of(self.first).data_id
        warmup_steps = spec.warmup_validations * self.first.trainer.validate_every
        pruner = optuna.pruners.MedianPruner(spec.startup_trials, warmup_steps)
        direction = "maximize" if spec.maximize else "minimize"
        study = study_name(spec, name, self.first, self.data_id)
        self.queue = Queue(study, storage, folder, spec.metric, direction=direction, pruner=pruner)

    def fill(self, count: int) -> list[str]:
        """Queues what is missing of `count` trials, failed ones with new values; gives their names."""
        newest = {job_of(trial): trial.state for trial in self.queue.patiently(self.queue.trials)}
        names = [f"{self.queue.name}.{number:04}" for number in range(count)]
        finished = (TrialState.COMPLETE, TrialState.PRUNED)
        todo = [name for name in names if newest.get(name) not in finished]
        self.queue.fill({name: {"folder": f"sweeps/{name}"} for name in todo if newest.get(name) not in OPEN})
        return todo

    def run(self, trial: Trial) -> None:
        params = self.queue.patiently(lambda: self.suggest(trial))
        experiment = self.experiment_of(params)
        folder = run_dir(experiment, self.name)
        report = Report(self.spec.metric, experiment.trainer.max_steps, partial(self.queue.is_hopeless, trial))
        start, shown = time.monotonic(), show_params(params)
        with keep_traceback(folder):
            try:
                record = train(experiment, self.name, folder, callbacks=[report])
            except optuna.TrialPruned as pruned:
                self.queue.fail(trial, str(pruned), TrialState.PRUNED)
                say(trial, f"{shown}: pruned after {duration(time.monotonic() - start)}, {pruned}")
                return
            value = record["metrics"].get(self.spec.metric, math.nan)
            if math.isnan(value):
                raise FloatingPointError(f"{self.spec.metric} is not measured or not a number")
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
        self.queue.study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=self.spec.startup_trials,
            constant_liar=True,  # two workers do not try the same corner
            seed=self.spec.seed + trial.number,
        )
        params: dict[str, Any] = {}
        for key, parameter in self.spec.space.items():
            low, high, log = parameter.low or 0.0, parameter.high or 0.0, parameter.log
            if parameter.choices:
                params[key] = trial.suggest_categorical(key, parameter.choices)
            elif parameter.integer:
                params[key] = trial.suggest_int(key, int(low), int(high), log=log)
            else:
                params[key] = trial.suggest_float(key, low, high, log=log)
        return params


class Report(Callback):
    """Callback: reports each validation metric of a training to Optuna and stops hopeless trials.

    `is_hopeless` gets the metric and the step, and says whether to end the run; one at `last_step` is finished.
    Raises optuna.TrialPruned, and ValueError for a metric that the validation does not have.
    """

    def __init__(self, metric: str, last_step: int, is_hopeless: Callable[[float, int], bool]) -> None:
        self.metric, self.last_step, self.is_hopeless = metric, last_step, is_hopeless

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # the evaluation of the finished model is the trial's value
            return
        values = trainer.callback_metrics
        if self.metric not in values:
            raise ValueError(f"metric={self.metric} is none of the validation's: {', '.join(sorted(values))}")
        value, step = float(values[self.metric]), int(getattr(module, "step", trainer.global_step))
        if self.is_hopeless(value, step) and step < self.last_step:
            raise optuna.TrialPruned(f"{self.metric} {value:.4g} at step {step} is worse than the median")


def study_name(spec: SearchSpec, name: str, experiment: Experiment, data_id: str) -> str:
    """`name`, the data and a digest of the search's meaning: all that decides what a trial is or how trials are ranked.

    `experiment`, that of any one point of the space, stands for recipe, scale, fixed values and arguments.
    """
    meaning = {key: value for key, value in asdict(spec).items() if key not in ("title", "trials")}
    return f"{name}_{data_name(data_id)}_{digest_of([meaning, experiment.digest(), data_id])}"


def corner(spec: SearchSpec, end: int) -> dict[str, Any]:
    """The lowest (0) or highest (-1) value of every parameter."""

    ends = {key: (parameter.choices or [parameter.low, parameter.high])[end] for key, parameter in spec.space.items()}
    return {key: int(value) if spec.space[key].integer else value for key, value in ends.items()}


def show_params(params: dict[str, Any]) -> str:
    texts = {key: f"{value:.3g}" if isinstance(value, float) else str(value) for key, value in params.items()}
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={text}" for key, text in texts.items())


def say(trial: Trial | FrozenTrial, text: str) -> None:
    print(f"[trial {trial.number}] {text}", flush=True)


def load_search(path: Path, scale: str, overrides: Sequence[str]) -> tuple[SearchSpec, ExperimentOf]:
    """The search and what makes an experiment of parameters. Raises ValueError that names file and key."""
    spec, overlay = read_spec(path, SearchSpec), load_scale(scale)
    if fixed := sorted(spec.space.keys() & flatten(from_dotlist(overrides)).keys()):
        raise ValueError(f"{path}: {fixed[0]} is searched, so it cannot be set as well: leave out one of the two")
    name = f"{spec.experiment}_{overlay.experiments}"

    def experiment_of(params: dict[str, Any]) -> Experiment:
        with naming(path):
            values = compose(recipe_values(name, nest(spec.set | params), overlay), from_dotlist(overrides))
        experiment = parse(values, f"{path} ({name}.yaml, {show_params(params)})")
        validate_every = max(1, experiment.trainer.max_steps // spec.validations)
        return replace(experiment, trainer=replace(experiment.trainer, validate_every=validate_every))

    for end in (0, -1):  # a mistake is named before any work
        experiment_of(corner(spec, end))
    return spec, experiment_of


def run(options: argparse.Namespace) -> int:
    """What the command does; the exit status. Raises ValueError for mistakes before any work."""
    begin(options)
    if options.trials < 0:
        raise ValueError(f"TRIALS={options.trials} must be at least 1")
    path, output_dir = find_sweep(options.file), Path(options.output_dir)
    spec, experiment_of = load_search(path, options.scale, options.overrides)
    resolve = data_resolver(options.data, options.data_dir, options.output_dir)
    name, count = f"{sweep_name(path)}_{options.scale}", options.trials or spec.trials
    first = resolve(experiment_of(corner(spec, 0)))
    if options.print_config:
        print(f"# of a trial at the lower end of {', '.join(spec.space)}\n{as_yaml(first)}", end="")
        return 0
    if options.dry_run:
        print(f"{spec.title}: {count} trials of {', '.join(spec.space)}, scale {options.scale}")
        return 0
    search = Search(spec, name, lambda params: resolve(experiment_of(params)), options.storage, output_dir)
    names = search.fill(count)
    lot = Lot(search.queue, lambda: set(names), search.run, say)
    if options.as_worker:
        work([lot])
        return 0
    print(f"{spec.title}: {len(names)} of {count} trials to run, scale {options.scale}", flush=True)
    if names:
        share("sweeps.search", len(names), [search.first], options, lambda: work([lot]))
    return write_trials(search.queue.study, spec, options.scale, data_name(search.data_id), output_dir / "tables")
