"""What a run keeps and shows beside its numbers: its configuration in checkpoints, its pictures in TensorBoard."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter


class InCheckpoint(Callback):
    """Callback: puts entries, of plain containers, into every checkpoint; they say of which experiment and images."""

    def __init__(self, **entries: Any) -> None:
        self.entries = entries

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.entries


def tensorboard(trainer: L.Trainer) -> SummaryWriter | None:
    """Where pictures go; None on other ranks and without a TensorBoard logger."""
    is_writing = trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger)
    return trainer.logger.experiment if is_writing else None  # type: ignore[union-attr]


class Dashboard(Callback):
    """At every validation the module's figures go to TensorBoard; plots are also PNG files in the run's folder."""

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(module.layout)

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        if not (writer := tensorboard(trainer)):
            return
        for name, picture in module.figures().items():
            if isinstance(picture, Figure):
                picture.savefig(Path(writer.log_dir) / f"{name.replace(' ', '_')}.png", dpi=150)
                writer.add_figure(name, picture, trainer.global_step)
            elif picture.ndim == 1:
                writer.add_histogram(name, picture, trainer.global_step)
            else:
                writer.add_image(name, picture, trainer.global_step)
        writer.flush()
