"""Short trainings on a GPU by Lightning's loop. GPU_CHECK_DEVICE=cpu runs them on a CPU, to try the tests."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from lightning.pytorch.callbacks import Callback

from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, build_model
from experiments.runtime.trainer import build_trainer, quiet
from lightning_modules.quantizers import LargeCodebook

DEVICE = torch.device(os.environ.get("GPU_CHECK_DEVICE", "cuda"))
ACCELERATOR = "cpu" if DEVICE.type == "cpu" else "gpu"
QUIET = ("trainer.log_every=100000", "trainer.checkpoint_every=100000")  # both wait for values


def on_gpu(accelerator: str = ACCELERATOR) -> list[str]:
    return [f"runtime.accelerator={accelerator}", "runtime.devices=1"]


def known(tiny: TinyExperiment, model: str, *overrides: str) -> Experiment:
    """The tiny experiment; the test is skipped where an option or value is not one of this version."""
    try:
        return tiny(model, *overrides)
    except ValueError as error:
        pytest.skip(f"not in this version: {error}")


def untrained(experiment: Experiment) -> Any:
    """The module with the weights of its seed; a large codebook holds random features."""
    L.seed_everything(experiment.seed, workers=True, verbose=False)
    module = build_model(experiment)
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn_like(module.quantizer.table))
    return module


def fit(experiment: Experiment, folder: Path, *callbacks: Callback, checkpoint: Path | None = None) -> Any:
    """The module, trained by the suite's own trainer without validation."""
    quiet()
    module, data = untrained(experiment), build_data(experiment)
    trainer = build_trainer(experiment, module, folder, *callbacks)
    trainer.fit(module, data, ckpt_path=checkpoint, weights_only=True)
    return module


class Losses(Callback):
    """Keeps the values that each step logs, on their device."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        values = trainer.callback_metrics
        self.steps.append({name: value.detach().clone() for name, value in values.items() if "/" in name})

    def of(self, name: str) -> list[float]:
        return [float(step[name]) for step in self.steps]


class NoWaits(Callback):
    """Between the ends of the batches `first` and `last` of an epoch nothing makes the host wait for the GPU: neither
    the steps, nor their batches, nor the trainer's loop. On a CPU it looks at nothing."""

    def __init__(self, first: int = 8, last: int = 12) -> None:
        self.first, self.last = first, last
        self.is_over = False

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            self.is_over = True
        if DEVICE.type == "cuda" and batch_idx in (self.first, self.last):
            torch.cuda.set_sync_debug_mode("error" if batch_idx == self.first else "default")

    def on_exception(self, *_: Any) -> None:
        if DEVICE.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
