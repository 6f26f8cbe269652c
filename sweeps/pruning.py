"""Callback: reports each validation metric of a training to Optuna and stops hopeless trials."""

from collections.abc import Callable

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn


class Report(Callback):
    """Gives `is_hopeless` the metric and step of every validation in training, and ends the run when it says so.

    A run at `last_step` is finished and not ended. Raises optuna.TrialPruned, and ValueError for a metric that the
    validation does not have.
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
