"""A recipe's real training step, without a trainer's loop around it: what the training-step benchmarks time."""

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch import Tensor

from experiments.config.compose import load_experiment
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_model
from experiments.runtime.trainer import quiet
from lightning_modules.execution import run_as
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer

GAME_ON = ("model.loss.discriminator_start=0", "model.loss.adversarial_start=0")


def tokenizer(recipe: str, *overrides: str) -> tuple[Tokenizer, dict[str, Tensor]]:
    """`made` with the adversarial game on."""
    return made(load_experiment(recipe, [*GAME_ON, *overrides]))


def made(experiment: Experiment) -> tuple[Tokenizer, dict[str, Tensor]]:
    """The experiment's module with a random batch of its size; a large codebook is random."""
    torch.manual_seed(0)
    module = build_model(experiment).train()
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn_like(module.quantizer.table))
    run_as(module, experiment.trainer.memory_format, experiment.trainer.compile)
    size = experiment.data.image_size
    return module, {"image": torch.rand(experiment.data.batch_size, 3, size, size) * 2 - 1}


def step(
    module: Tokenizer, batch: dict[str, Tensor], precision: Any = "32-true", at: int | None = None
) -> Callable[[], object]:
    """A function that makes one training step of `module`, by Lightning's own manual-optimization loop.

    `at`: each call makes this step of the training, and so plays the game or not.
    """
    quiet()
    trainer = L.Trainer(
        precision=precision,
        accelerator="cpu",
        max_steps=10**9,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.strategy.connect(module)
    module.trainer = trainer
    trainer.strategy.setup_optimizers(trainer)
    module.log = module.log_dict = lambda *args, **kwargs: None  # type: ignore[assignment,method-assign]

    def training_step() -> None:
        module.step = module.step if at is None else at
        with trainer.precision_plugin.train_step_context():
            module.training_step(batch, 0)

    return training_step
