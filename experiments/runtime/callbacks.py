"""What a run shows: TensorBoard images, histograms and layout, and plain progress lines in a log."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.utils import make_grid

LAYOUT = {
    "training": {
        "loss": ["Multiline", ["loss/generator", "loss/l1", "loss/l2", "loss/perceptual", "loss/quantizer"]],
        "game": [
            "Multiline",
            ["loss/adversarial", "loss/discriminator", "discriminator/accuracy", "weight/adversarial"],
        ],
    },
    "codebook": {
        "utilisation, % of codes": ["Multiline", ["usage/epoch", "usage/val", "usage/batch"]],
        "perplexity": ["Multiline", ["perplexity/epoch", "perplexity/val"]],
        "dead codes": ["Multiline", ["dead_codes/epoch", "dead_codes/val"]],
    },
    "reconstruction": {
        "rFID": ["Multiline", ["rfid"]],
        "PSNR, dB": ["Multiline", ["psnr"]],
        "SSIM": ["Multiline", ["ssim"]],
        "perceptual distance": ["Multiline", ["lpips", "feature_distance"]],
    },
}

VIM_LAYOUT = {
    "tokens": {
        "loss, nats a token": ["Multiline", ["loss/generator"]],
        "bits per token": ["Multiline", ["bits_per_token/train", "bits_per_token/val"]],
    },
    "generation": {
        "FID": ["Multiline", ["fid"]],
        "IS": ["Multiline", ["is"]],
        "utilisation, % of codes": ["Multiline", ["usage/generated"]],
    },
}

PROBE_LAYOUT = {
    "linear probe": {
        "loss, mean of the blocks": ["Multiline", ["loss/probe"]],
        "test accuracy by block, %": ["Multiline", ["probe/accuracy/block.*"]],
        "held-out accuracy by block, %": ["Multiline", ["probe/heldout/block.*"]],
        "test accuracy of the chosen block, %": ["Multiline", ["probe/accuracy$"]],
    },
}


class InCheckpoint(Callback):
    """Puts entries, of plain containers, into every checkpoint: of what experiment and images it is."""

    def __init__(self, **entries: Any) -> None:
        self.entries = entries

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.entries


def tensorboard(trainer: L.Trainer) -> SummaryWriter | None:
    """Where pictures go; None on other ranks and without a TensorBoard logger."""
    is_writing = trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)
    return trainer.logger.experiment if is_writing else None  # type: ignore[union-attr]


class Dashboard(Callback):
    """The same eight validation images | reconstructions | absolute errors at every validation, and code counts."""

    def __init__(self, num_images: int = 8) -> None:
        self.num_images = num_images
        self.images: Tensor | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(LAYOUT)

    def on_validation_batch_start(
        self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.images is None:
            self.images = batch["image"][: self.num_images].detach().clone()

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        writer = tensorboard(trainer)
        if writer is None or self.images is None:
            return
        writer.add_image("inputs | reconstructions | errors", reconstruction_grid(module, self.images), module.step)
        counts = module.metrics.last_counts
        if counts is not None:
            writer.add_histogram("log10(1 + uses of each code)", torch.log10(1 + counts.float()), module.step)
        writer.flush()


class Samples(Callback):
    """At every validation the same images of a VIM: the same numbers, seed and classes; and bits by position."""

    def __init__(self, num_images: int = 64) -> None:
        self.num_images = num_images

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(VIM_LAYOUT)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not (writer := tensorboard(trainer)):
            return
        if module.tokenizer is not None:
            writer.add_image("samples, classes in turn", sample_grid(module, self.num_images), trainer.global_step)
        axes = (figure := Figure((6, 3), layout="constrained")).subplots()
        axes.plot(range(len(module.bits_by_position)), module.bits_by_position)
        axes.set(xlabel="token, raster order", ylabel="bits")
        writer.add_figure("bits per token by position", figure, trainer.global_step)
        writer.flush()


class AccuracyByBlock(Callback):
    """A-Figure 3 at every validation: a probe's accuracies by block, in TensorBoard and as a PNG in the run folder."""

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(PROBE_LAYOUT)

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not (writer := tensorboard(trainer)):
            return
        figure = accuracy_figure(module)
        figure.savefig(Path(writer.log_dir) / "accuracy_by_block.png", dpi=150)
        writer.add_figure("accuracy by block", figure, trainer.global_step)
        writer.flush()


def accuracy_figure(module: Any) -> Figure:
    """Held-out and test accuracy by block, the chosen block marked."""
    blocks, (heldout, val) = module.features.blocks, module.by_block
    axes = (figure := Figure((6, 3.5), layout="constrained")).subplots()
    axes.plot(blocks, heldout, "o--", label=f"held-out training images, {module.num_seen[0]:,}")
    axes.plot(blocks, val, "o-", label=f"test images, {module.num_seen[1]:,}")
    axes.axvline(module.best_block, color="grey", linestyle=":", label=f"chosen: block {module.best_block}")
    axes.set(xlabel="block", ylabel="top-1 accuracy, %", title=f"linear probe of {module.features.name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def sample_grid(module: Any, num_images: int, seed: int = 0) -> Tensor:
    """Images 0, 1, ... of `seed`, a class a column: (3, height, width) in [0, 1]."""
    images, _, _ = module.sample(list(range(num_images)), seed)
    return make_grid((images.cpu() + 1) / 2, nrow=num_columns(module.gpt.num_classes), padding=2)


def num_columns(num_classes: int) -> int:
    """Of a grid of images whose classes come in turn: eight or more, and a class keeps to its columns."""
    return max(1, 8 // num_classes) * num_classes if 1 < num_classes <= 16 else 8


def reconstruction_grid(module: Any, images: Tensor) -> Tensor:
    """Inputs, reconstructions and absolute errors, a column each and an image a row: (3, height, width) in [0, 1]."""
    reconstruction = module(images).reconstruction.clamp(-1, 1).float()
    error = (reconstruction - images).abs() - 1  # [0, 2] -> [-1, 1]
    rows = torch.stack([images, reconstruction, error], 1).flatten(0, 1)  # (3 B, 3, H, W)
    return make_grid((rows + 1) / 2, nrow=3, padding=2)


class AveragedWeights(EMAWeightAveraging):
    """Lightning takes the averaged weights away before the module's `on_validation_epoch_end`, in which a VIM generates
    its images; here they stay until the validation is over. And they are the model's after `fit` also where that found
    nothing left to train."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._copy_average_to_current(pl_module)


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


LOSSES = ("loss/generator", "loss/probe")  # what ProgressLines shows: the first that is logged


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
    """A plain line now and then, for logs: step, loss, speed, time left; in a long validation batches instead."""

    def __init__(self, seconds: float = 10.0) -> None:
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

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now, step = time.monotonic(), trainer.global_step
        if now - self.last < self.interval or not trainer.is_global_zero or step == self.first_step:
            return
        self.last = now
        per_step = (now - self.start) / (step - self.first_step)
        left = per_step * (trainer.max_steps - step)
        loss = next((float(trainer.callback_metrics[k]) for k in LOSSES if k in trainer.callback_metrics), float("nan"))
        print(
            f"  step {step}/{trainer.max_steps}  loss {loss:.4f}  {per_step:.3f} s/step  {left:.0f} s left",
            flush=True,
        )
