"""A search's ear in a training run."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn


class Report(Callback):
    """Gives the trial the metric of every validation in training, and ends the run when the pruner says so.

    It is not ended at `last_step`, when it is finished. `patiently` runs what may have to wait for a database. Raises
    optuna.TrialPruned, and ValueError for a metric that the validation does not have.
    """

    def __init__(
        self, trial: optuna.Trial, metric: str, last_step: int, patiently: Callable[[Callable[[], Any]], Any]
    ) -> None:
        self.trial, self.metric, self.last_step, self.patiently = trial, metric, last_step, patiently

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # the evaluation of the finished model is the trial's value
            return
        values = trainer.callback_metrics
        if self.metric not in values:
            raise ValueError(f"metric={self.metric} is none of the validation's: {', '.join(sorted(values))}")
        value, step = float(values[self.metric]), int(getattr(module, "step", trainer.global_step))

        def report() -> bool:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):  # taken for dead meanwhile
                self.trial.report(value, step)
                return step < self.last_step and self.trial.should_prune()
            return False

        if self.patiently(report):
            raise optuna.TrialPruned(f"{self.metric} {value:.4g} at step {step} is worse than the median")
