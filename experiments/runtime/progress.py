"""Progress of a training or other long work: a bar on a terminal, a line every few seconds in a log."""

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


@contextmanager
def progress(unit: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A function to call with how many more are done; for work of a few seconds it shows nothing."""
    if sys.stderr.isatty():
        with tqdm(total=total, initial=done, unit=f" {unit}s", unit_scale=True, delay=5) as bar:
            yield lambda more: bar.update(more) and None
        return
    first, start = done, time.monotonic()
    last = start

    def show(more: int) -> None:
        nonlocal done, last
        done, now = done + more, time.monotonic()
        if more and now - last >= SECONDS:
            last, speed = now, (done - first) / (now - start)
            left = (total - done) / speed
            print(f"  {unit} {done:,}/{total:,}  {speed:,.1f} {unit}s/s  {left:,.0f} s left", flush=True)

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

    start, first_step = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.start, self.first_step = time.monotonic(), trainer.global_step

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = {**super().get_metrics(trainer, pl_module)}
        metrics["step"] = f"{trainer.global_step}/{trainer.max_steps}"
        if (done := trainer.global_step - self.first_step) > 0:
            left = (time.monotonic() - self.start) / done * (trainer.max_steps - trainer.global_step)
            metrics["left"] = str(timedelta(seconds=round(left)))
        return metrics


class ProgressLines(Callback):
    """A plain line every few seconds, for logs: step, loss, speed, time left; in a long validation its batches."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.interval, self.last, self.start, self.first_step = seconds, 0.0, 0.0, 0
        self.validation_start = 0.0

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validation_start = time.monotonic()

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        now, done, total = time.monotonic(), batch_idx + 1, trainer.num_val_batches[dataloader_idx]
        if now - max(self.last, self.validation_start) < self.interval or not trainer.is_global_zero:
            return
        self.last = now
        left = (now - self.validation_start) / done * (total - done)
        print(f"  validation batch {done}/{total:.0f}  {left:.0f} s left", flush=True)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.start = self.last = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self.last < self.interval or not trainer.is_global_zero or step == self.first_step:
            return
        self.last = now
        per_step = (now - self.start) / (step - self.first_step)
        left = per_step * (trainer.max_steps - step)
        loss = float(trainer.callback_metrics.get(module.progress_metric, float("nan")))
        print(
            f"  step {step}/{trainer.max_steps}  loss {loss:.4f}  {per_step:.3f} s/step  {left:.0f} s left", flush=True
        )
