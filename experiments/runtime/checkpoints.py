"""When and how a run is saved, so that a run killed at any moment continues as if it had not been stopped."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from experiments.runtime import progress
from experiments.runtime.files import replacing
from experiments.runtime.signals import Stopped, StopRequest
from lightning_modules.lightning_fixes import count_last_step, resume_with_validation, true_epochs

SAVE_SECONDS = 60.0  # of work that a kill may cost
SAVE_SHARE = 0.05  # of the time, at most, is spent on saving: large models are saved less often


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames. Lightning moves from the temporary folder, which may copy, not rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises OSError that names the file; the one before it is kept."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(Path(path)) as file:
            torch.save(checkpoint, file)


class ResumePoints(Checkpoint):
    """Writes last.ckpt: every so many steps, when SAVE_SECONDS have passed, before a validation, and at a request to
    stop, which ends the run.

    It saves only after a whole optimizer step. A run that was saved before a validation continues with that validation.
    At the last step nothing is saved: final.ckpt follows.
    """

    def __init__(self, folder: Path, every_steps: int, stop: StopRequest) -> None:
        self.path, self.every_steps, self.stop = folder / "last.ckpt", every_steps, stop
        self.is_before_validation = self.resumes_validation = False
        self.step = -1  # after the last training batch
        self.is_whole = True  # that batch has ended an optimizer step
        self.saved_step = -1
        self.saved = self.cost = 0.0  # seconds: when the last save ended, how long it took
        self.progress: dict[str, Any] = {}  # of the loops, at the last step
        self.has_ended = False

    # ---- in checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"is_before_validation": self.is_before_validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumes_validation = state_dict["is_before_validation"]

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Workaround: after `fit` Lightning counts an epoch that max_steps has cut off as complete; keep its true
        progress, so that going on repeats nothing."""
        if self.has_ended:
            checkpoint["loops"]["fit_loop"] = self.progress
        checkpoint["epoch"] = true_epochs(checkpoint["loops"]["fit_loop"])

    # ---- training

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.stop.listen()  # in place of Lightning's handler, which talks to other ranks wherever a SIGTERM is met
        self.step, self.saved = trainer.global_step, time.monotonic()
        if self.step:
            say_step(trainer)
        if self.resumes_validation:
            self.saved_step = self.step
            resume_with_validation(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.is_whole, self.step = trainer.global_step != self.step, trainer.global_step
        self.note_progress(trainer)
        if not self.is_whole or is_validation_next(trainer) or self.step >= trainer.max_steps:
            return
        is_late = time.monotonic() - self.saved >= max(SAVE_SECONDS, self.cost / SAVE_SHARE)
        if not any_rank(trainer, is_late or bool(self.stop.number)):
            if self.step % self.every_steps == 0:
                self.save(trainer)
            return
        self.save(trainer)
        self.leave_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.has_ended = True

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.has_ended:  # nothing was left to train
            say_step(trainer)
            self.progress, self.has_ended = trainer.fit_loop.state_dict(), True
            count_last_step(trainer)

    # ---- validation

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not self.is_whole:
            return
        self.note_progress(trainer)
        if self.saved_step != self.step:
            self.is_before_validation = True
            self.save(trainer)
            self.is_before_validation = False
        self.stop.at_once = trainer.world_size == 1
        self.leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn == TrainerFn.FITTING and self.is_whole and trainer.world_size > 1:
            self.leave_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.stop.at_once = False

    # ---- parts

    def note_progress(self, trainer: L.Trainer) -> None:
        if self.step >= trainer.max_steps:
            self.progress = trainer.fit_loop.state_dict()

    def save(self, trainer: L.Trainer) -> None:
        start = time.monotonic()
        trainer.save_checkpoint(self.path)
        self.saved_step, self.saved = self.step, time.monotonic()
        self.cost = self.saved - start

    def leave_if_asked(self, trainer: L.Trainer) -> None:
        """Raises Stopped on all ranks when a signal has come to one of them."""
        if any_rank(trainer, bool(self.stop.number)):
            raise Stopped(self.stop.number or 15, f"step {self.step} of {trainer.max_steps} is in {self.path}")


def say_step(trainer: L.Trainer) -> None:
    if trainer.is_global_zero:
        print(f"{progress.prefix}continues from step {trainer.global_step} of {trainer.max_steps}", flush=True)


def is_validation_next(trainer: L.Trainer) -> bool:
    """Whether Lightning validates after this batch; it counts batches across epochs."""
    return (trainer.fit_loop.total_batch_idx + 1) % (trainer.val_check_batch or 1) == 0


def any_rank(trainer: L.Trainer, value: bool) -> bool:
    """True on all ranks when it is on one; clocks and signals differ between them."""
    return bool(trainer.strategy.reduce_boolean_decision(value, all=False))
