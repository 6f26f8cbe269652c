"""A recipe's real training step, without a trainer's loop around it: what the training-step benchmarks time."""

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor

from experiments.config.compose import load_experiment
from experiments.pipeline.build import build_model
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer


def tokenizer(recipe: str, *overrides: str) -> tuple[Tokenizer, dict[str, Tensor]]:
    """The recipe's module with a random batch of its size, adversarial game on; a large codebook is random."""
    start = ("model.loss.discriminator_start=0", "model.loss.adversarial_start=0")
    experiment = load_experiment(recipe, [*start, *overrides])
    torch.manual_seed(0)
    module = build_model(experiment).train()
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn_like(module.quantizer.table))
    size = experiment.data.image_size
    return module, {"image": torch.rand(experiment.data.batch_size, 3, size, size) * 2 - 1}


def step(module: Tokenizer, batch: dict[str, Tensor]) -> Callable[[], object]:
    """A function that makes one training step of `module`, by Lightning's own manual-optimization loop."""
    trainer = L.Trainer(
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
    return lambda: module.training_step(batch, 0)
