"""Measures a trained model, by its own validation loop."""

from pathlib import Path
from typing import Any

import lightning as L

from datamodules import ImageDataModule
from experiments.config.experiment import Experiment
from experiments.pipeline.prepare import prepare_evaluation
from experiments.runtime.files import locked
from experiments.runtime.precision import full_float32, precision_options
from experiments.runtime.ranks import main_first, silent_trainer


def evaluate(
    trainer: L.Trainer, module: Any, data: L.LightningDataModule, images: ImageDataModule, output_dir: Path
) -> dict[str, float]:
    """Validation metrics of `module` on all validation data, by the module's own validation loop."""
    use_reference(trainer, module, images, output_dir)
    with full_float32():
        metrics, *_ = trainer.validate(module, data, verbose=False)  # the same for every loader
    return {name: float(value) for name, value in metrics.items()}


def measure(experiment: Experiment, module: Any, tokenizer: str | None = None) -> tuple[dict[str, float], str]:
    """Validation metrics of a restored module, and the id of the images: what `experiments.evaluate` prints."""
    module, data, images = prepare_evaluation(experiment, module, tokenizer)
    trainer = measuring_trainer(experiment, devices=1)
    return evaluate(trainer, module, data, images, Path(experiment.runtime.output_dir)), images.data_id


def measuring_trainer(experiment: Experiment, **placement: Any) -> L.Trainer:
    """In the experiment's precision; `placement`: over which devices."""
    precision = precision_options(experiment.trainer.precision, experiment.runtime)
    return silent_trainer(experiment.runtime, **placement, **precision)


def use_reference(trainer: L.Trainer, module: Any, images: ImageDataModule, output_dir: Path) -> None:
    """FID's real images: one file for all models that are measured against them, made on the trainer's device."""
    if not (split := module.config.reference):
        return
    with main_first():
        loader = images.ordered_train_dataloader() if split == "train" else images.ordered_val_dataloader()
        pixels, device = (batch["image"] for batch in loader), trainer.strategy.root_device
        folder, key = output_dir / "references", images.images_key(split)
        with locked(folder / ".locks" / key.replace("/", "_"), "is making it"), full_float32():
            module.use_reference(folder, pixels, key, device)
