"""Workarounds for Lightning 2.6, all in one place: what it does, and what is done instead.

Each has a test in tests/lightning_modules/test_lightning_fixes.py that fails once Lightning no longer needs it. They
are here and not in experiments/runtime because a module needs one of them, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.optim.swa_utils import get_ema_avg_fn


class AveragedWeights(WeightAveraging):
    """The exponential moving average of the weights, but for buffers: averaged once more, an EMA codebook's counts and
    sums would be corrupt. With `ramp` its decay at update n is at most (1 + n) / (10 + n), as LDM's code has it.

    Lightning takes the averaged weights away before the module's `on_validation_epoch_end`, in which a VIM generates
    its images; here they stay until the validation is over. And they are the model's after `fit` also where that had
    nothing left to train."""

    def __init__(self, decay: float, ramp: bool = False) -> None:
        def ramped(average: Tensor, current: Tensor, num_averaged: Tensor) -> Tensor:
            update = num_averaged + 1  # the first one is a copy
            return current.lerp(average, ((1 + update) / (10 + update)).clamp(max=decay))

        super().__init__(use_buffers=False, avg_fn=ramped if ramp else get_ema_avg_fn(decay))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._copy_average_to_current(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Flags, which are neither parameters nor buffers, are the trained module's: its copy does not follow them."""
        super().on_save_checkpoint(trainer, module, checkpoint)
        averaged = {*dict(module.named_parameters()), *dict(module.named_buffers())}
        current = checkpoint.get("current_model_state", {})
        checkpoint["state_dict"] |= {name: value for name, value in current.items() if name not in averaged}


def leave_out_of_global_step(optimizer: Any) -> None:
    """Under manual optimization Lightning adds every optimizer's steps to `trainer.global_step`; this one's do not
    count."""
    optimizer._on_before_step = optimizer._on_after_step = lambda: None


def takes_unscaled_gradients(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """A fused optimizer could take off a loss's scale itself, and Lightning then refuses to clip, also where there is
    no scale; this one gets its gradients as any other does."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return optimizer


class ScalerEach(MixedPrecision):
    """float16 with a scaler for each optimizer. Lightning has one for all: its factor, changed by the step of one, does
    not fit the gradients that another has gathered of earlier micro-batches."""

    scaler: torch.amp.GradScaler  # that of the optimizer at work

    def __init__(self, device: str) -> None:
        super().__init__("16-mixed", device)
        self.scalers = [self.scaler]

    def use(self, index: int) -> None:
        while len(self.scalers) <= index:
            self.scalers.append(torch.amp.GradScaler(self.device))
        self.scaler = self.scalers[index]

    def state_dict(self) -> dict[str, Any]:
        return {"scalers": [scaler.state_dict() for scaler in self.scalers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for index, state in enumerate(state_dict["scalers"]):
            self.use(index)
            self.scaler.load_state_dict(state)


def use_scaler(trainer: L.Trainer, index: int) -> None:
    """From here on losses are scaled for the optimizer of this number; does nothing but in float16."""
    if isinstance(plugin := trainer.precision_plugin, ScalerEach):
        plugin.use(index)


def loss_scale(module: L.LightningModule) -> Tensor | None:
    """What losses are multiplied by, a scalar; None but in float16."""
    plugin = module.trainer.precision_plugin
    return plugin.scaler.scale(torch.ones((), device=module.device)) if isinstance(plugin, ScalerEach) else None


def logs_now(module: L.LightningModule) -> bool:
    """Whether what this batch logs reaches a logger: Lightning gathers every value, at 0.1 ms each, and drops most."""
    return module._trainer is None or module._trainer._logger_connector.should_update_logs


def true_epochs(loop: dict[str, Any]) -> int:
    """Corrects the count of epochs in the state of `fit_loop`, and returns how many are completed.

    A run that continues after an epoch's last batch does not count the next epoch as begun: continued a second time, it
    would see that epoch's order twice.
    """
    epochs = loop["epoch_progress"]
    for counts in epochs.values():
        counts["ready"] = counts["started"] = counts["processed"] + 1
    return epochs["current"]["completed"]


def resume_with_validation(trainer: L.Trainer) -> None:
    """Lightning skips the validation that was due right after a checkpoint; the continued run now starts with it."""
    trainer.fit_loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


def count_last_step(trainer: L.Trainer) -> None:
    """Where nothing was left to train, Lightning's loggers miss the last step; this adds it."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += 1


@contextmanager
def not_swallowed() -> Iterator[None]:
    """Lightning turns Ctrl-C into a plain exit with status 1."""
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise error.__context__ from None
        raise
