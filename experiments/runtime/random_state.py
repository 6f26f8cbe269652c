"""Random numbers in checkpoints."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from lightning_modules.distributed import is_distributed, rank, world_size


class RandomState(Callback):
    """Callback: keeps the state of all random numbers in checkpoints: flips, dropout and re-seeded codes go on as if
    never stopped.

    Each rank gets its own state back where there are as many ranks as before; else all get rank 0's.
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
    """Restores what `random_state` gave; GPUs' states where there are as many."""
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    numpy = state["numpy"]
    key = numpy["state"]["key"].numpy().astype(np.uint32)
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": key}})
    random.setstate(state["python"])
