"""Progress of a training or other long work: a bar on a terminal, a line every few seconds in a log."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar
from tqdm import tqdm

SECONDS = 10.0  # between two lines
prefix = ""  # before each line, such as "[3/20] ", where this process is one of several
CONCURRENT = "VQ_NUM_CONCURRENT"
num_concurrent = int(os.environ.get(CONCURRENT, 1))  # runs at a time on this machine, as its command was told


class Pace:
    """How fast long work goes on, of which `done` was done when it began."""

    def __init__(self, done: int = 0) -> None:
        self.first, self.start = done, time.monotonic()
        self.shown = self.start

    def is_due(self) -> bool:
        """Whether it is time for another line."""
        if is_due := (now := time.monotonic()) - self.shown >= SECONDS:
            self.shown = now
        return is_due

    def each(self, done: int) -> float:
        """Seconds a unit, when `done` are done."""
        return (time.monotonic() - self.start) / (done - self.first)


@contextmanager
def progress(unit: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done; for work of a few seconds it shows nothing."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=f" {unit}s", unit_scale=True, delay=5) as bar:
            yield lambda more: bar.update(more) and None
        return
    pace = Pace(done)

    def show(more: int) -> None:
        nonlocal done
        done += more
        if more and pace.is_due():
            each = pace.each(done)
            left = each * (total - done)
            print(f"{prefix}  {unit} {done:,}/{total:,}  {1 / each:,.1f} {unit}s/s  {left:,.0f} s left", flush=True)

    yield show


class Throughput(Callback):
    """Images a second over all training steps but a process's first (which allocates and compiles), batch loading
    included; and the time since the run was begun, both without what a kill has undone."""

    def __init__(self) -> None:
        self.images, self.seconds, self.last = 0, 0.0, 0.0
        self.start = time.monotonic()

    @property
    def wall_seconds(self) -> float:
        return time.monotonic() - self.start

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "seconds": self.seconds, "wall_seconds": self.wall_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images, self.seconds = state["images"], state["seconds"]
        self.start -= state["wall_seconds"]

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if self.last:
            self.images += len(next(iter(batch.values()))) * trainer.world_size
            self.seconds += now - self.last
        self.last = now

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.last = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0


class TimeLeft(RichProgressBar):
    """Lightning's bar, which counts an epoch's batches, with the step and the time left of the whole run beside it."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.pace = Pace(trainer.global_step)
        super().on_train_start(trainer, pl_module)

    def _get_train_description(self, current_epoch: int) -> str:
        """Without the number of epochs, which is unlimited: Lightning would say "Epoch 1/-2"."""
        return f"{f'Epoch {current_epoch}':{len(self.validation_description)}}"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = {**super().get_metrics(trainer, pl_module)}
        metrics.pop("v_num", None)  # a logger's version, of which a run has one
        metrics["step"] = f"{trainer.global_step}/{trainer.max_steps}"
        if trainer.global_step > self.pace.first:
            left = self.pace.each(trainer.global_step) * (trainer.max_steps - trainer.global_step)
            metrics["left"] = str(timedelta(seconds=round(left)))
        return metrics


class ProgressLines(Callback):
    """A plain line every few seconds, for logs: step, loss, speed, time left; in a long validation its batches."""

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validation = Pace()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.is_global_zero and self.validation.is_due():
            done, total = batch_idx + 1, trainer.num_val_batches[dataloader_idx]
            left = self.validation.each(done) * (total - done)
            print(f"{prefix}  validation batch {done}/{total:.0f}  {left:.0f} s left", flush=True)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.training = Pace(trainer.global_step)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, pace = trainer.global_step, self.training
        if trainer.is_global_zero and step > pace.first and pace.is_due():
            each = pace.each(step)
            loss = trainer.callback_metrics.get(module.progress_metric)  # None before the first logged step
            words = f"step {step}/{trainer.max_steps}" + ("" if loss is None else f"  loss {float(loss):.4f}")
            print(f"{prefix}  {words}  {each:.3f} s/step  {each * (trainer.max_steps - step):.0f} s left", flush=True)
