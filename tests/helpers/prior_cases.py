"""What tests of priors share, whatever these are priors of: batches cut in pieces, and a silent trainer."""

from typing import Any

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader

Batch = dict[str, Tensor]


def pieces(batch: Batch, size: int) -> list[Batch]:
    return [{key: value[i : i + size] for key, value in batch.items()} for i in range(0, len(batch["label"]), size)]


def trainer(**options: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    return L.Trainer(accelerator="cpu", enable_model_summary=False, **quiet, **options)


def loader(batches: list[Batch]) -> DataLoader:
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
