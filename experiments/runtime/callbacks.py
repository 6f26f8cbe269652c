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

from experiments.config.experiment import TrainerConfig
from experiments.runtime.checkpoints import is_validation_next
from experiments.runtime.loggers import tensorboard
from lightning_modules.distributed import is_distributed, rank, world_size


class InCheckpoint(Callback):
    """Callback: puts entries, of plain containers, into every checkpoint; they say of which experiment and images."""

    def __init__(self, **entries: Any) -> None:
        self.entries = entries

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= self.entries


class Dashboard(Callback):
    """What the loggers show beside numbers: the configuration, and the module's pictures every so many steps.

    TensorBoard alone has pictures; plots are also PNG files in the run's folder.
    """

    def __init__(self, config: TrainerConfig, configuration: str, changes: dict[str, Any]) -> None:
        """`configuration`: a text for TensorBoard; `changes`: what the other loggers list."""
        self.configuration, self.changes = configuration, changes
        self.every_steps = config.show_every or -(-config.max_steps // 10)
        self.shown_step = -1

    def on_fit_start(self, trainer: L.Trainer, module: Any) -> None:
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(self.changes)
        if writer := tensorboard(trainer):
            writer.add_custom_scalars(module.layout)
            writer.add_text("configuration", f"```yaml\n{self.configuration}\n```")

    @torch.no_grad()
    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every_steps or step in (0, self.shown_step, trainer.max_steps) or is_validation_next(trainer):
            return  # with `accumulate` several batches have one number; validations, one at the end, show more
        self.shown_step = step
        if writer := tensorboard(trainer):
            modes = [(part, part.training) for part in module.modules()]
            module.eval()
            show(writer, module.pictures(), step)
            for part, mode in modes:
                part.training = mode

    def on_validation_start(self, trainer: L.Trainer, module: Any) -> None:
        for logger in trainer.loggers:
            logger.is_validating = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        for logger in trainer.loggers:
            logger.is_validating = False  # type: ignore[attr-defined]
        if writer := tensorboard(trainer):
            show(writer, module.pictures() | module.figures(), trainer.global_step)


def show(writer: SummaryWriter, pictures: dict[str, Any], step: int) -> None:
    for name, picture in pictures.items():
        if isinstance(picture, Figure):
            picture.savefig(Path(writer.log_dir) / f"{name.replace(' ', '_')}.png", dpi=150)
            writer.add_figure(name, picture, step)
        elif picture.ndim == 1:
            writer.add_histogram(name, picture, step)
        else:
            writer.add_image(name, picture, step)
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
