"""What a run keeps and shows beside its numbers: configuration and random numbers in checkpoints, its pictures."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from lightning_modules.distributed import is_distributed, rank, world_size


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


class CapturedSteps(Callback):
    """Callback: steps become CUDA graphs on one GPU, where each is one pass over its batch; elsewhere nothing changes.

    Graphs know nothing of other ranks, of micro-batches, and of a loss that is scaled.
    """

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        on_one_gpu = trainer.strategy.root_device.type == "cuda" and trainer.world_size == 1
        if on_one_gpu and module.config.optimizer.accumulate == 1 and trainer.precision != "16-mixed":
            module.capture_steps()


class RandomState(Callback):
    """Keeps all random numbers in checkpoints: flips, dropout and re-seeded codes go on as if never stopped.

    Each rank has its own again, where there are as many as before; else all go on with the first one's.
    """

    def __init__(self) -> None:
        self.saved: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Collective: Lightning calls it on every rank."""
        if not is_distributed():
            return random_state()
        ranks: list[Any] = [None] * world_size()
        dist.all_gather_object(ranks, random_state())
        return {"ranks": ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        ranks = state.get("ranks", [state])
        self.saved = ranks[rank() if world_size() == len(ranks) else 0]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.restore()

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.restore()  # where nothing was left to train

    def restore(self) -> None:
        if self.saved:
            set_random_state(self.saved)
            self.saved = {}


def random_state() -> dict[str, Any]:
    """Of torch, NumPy and Python, as tensors and plain containers: `weights_only` loads it."""
    numpy: dict[str, Any] = np.random.get_state(legacy=False)
    numpy = numpy | {"state": numpy["state"] | {"key": torch.from_numpy(numpy["state"]["key"].astype(np.int64))}}
    torch_states = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
    return torch_states | {"numpy": numpy, "python": random.getstate()}


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` gave; the GPUs' where there are as many."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": key}})
    random.setstate(state["python"])
