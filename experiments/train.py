"""Trains one experiment and writes its result record.

python -m experiments.train experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384 trainer.max_steps=500
"""

import argparse
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    Callback,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from datamodules import ImageDataModule
from experiments.build import data_module, load_checkpoint, resolve_data
from experiments.callbacks import (
    AccuracyByBlock,
    AveragedWeights,
    Dashboard,
    ExperimentInCheckpoint,
    ProgressLines,
    RandomState,
    Samples,
    Throughput,
    TimeLeft,
)
from experiments.chain import prepare, run_dir
from experiments.config import Downstream, Experiment, load_experiment
from experiments.errors import user_errors
from experiments.health import (
    FiniteWeights,
    naming_last_checkpoint,
    peak_device_memory_bytes,
    peak_memory_bytes,
    reset_peak_memory,
)
from experiments.records import (
    FORMAT,
    Record,
    environment,
    read_record,
    record_path,
    same_experiment,
    write_json,
)
from experiments.summary import count, print_summary
from experiments.values import flatten
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM

DISPLAYS: dict[str, type[Callback]] = {"vim": Samples, "linear_probe": AccuracyByBlock}  # tokenizers: Dashboard


def train(experiment: Experiment, name: str, run_dir: Path, needs_checkpoint: bool = False) -> Record:
    """Trains `experiment` in `run_dir`, from its last checkpoint if there is one, evaluates it and writes its record.

    Returns the record, also found at <runtime.output_dir>/records/<digest>.<data_id>.json. A finished run is not
    trained again, unless its checkpoint is needed and gone.
    """
    start, made_on = time.monotonic(), environment()  # the code that runs, not what is committed meanwhile
    reset_peak_memory()
    quiet()
    checkpoints, output_dir = run_dir / "checkpoints", Path(experiment.runtime.output_dir)
    path = record_path(output_dir / "records", experiment, data_module(experiment).data_id)
    is_enough = not needs_checkpoint or (checkpoints / "final.ckpt").is_file()
    if is_enough and path.is_file() and same_experiment(record := read_record(path), experiment):
        return record
    L.seed_everything(experiment.seed, workers=True, verbose=False)
    module, data, images = prepare(experiment, train)
    print_summary(experiment, module, name, images.data_id)

    throughput = Throughput()
    trainer = build_trainer(experiment, run_dir, throughput)
    if experiment.trainer.validate_every:
        use_reference(module, images, output_dir)
    with naming_last_checkpoint(checkpoints):
        trainer.fit(module, data, ckpt_path=resume_point(checkpoints, experiment), weights_only=True)
        if trainer.interrupted:
            raise KeyboardInterrupt
        trainer.save_checkpoint(checkpoints / "final.ckpt")
    metrics = evaluate(trainer, module, data, images, output_dir) | module.training_metrics

    record = {
        "format": FORMAT,
        "name": name,
        "digest": experiment.digest(),
        "data_id": images.data_id,
        "config": experiment.identity(),
        "seed": experiment.seed,
        "metrics": metrics,
        "history": module.history,
        "protocols": module.protocols(),
        "parameters": count(module) - count(getattr(module, "discriminator", None)),
        "images_per_second": throughput.images_per_second,
        "wall_seconds": time.monotonic() - start,
        "peak_memory_bytes": peak_memory_bytes(),
        "peak_device_memory_bytes": peak_device_memory_bytes(),
        "device": str(trainer.strategy.root_device),
        "environment": made_on,
    }
    if trainer.is_global_zero:
        log_hyperparameters(trainer, experiment, metrics)
        write_json(path, record)
        (checkpoints / "last.ckpt").unlink(missing_ok=True)  # final.ckpt holds the same and more
    return record


def resume_point(checkpoints: Path, experiment: Experiment) -> Path | None:
    """The newest checkpoint of a run that was stopped; None to start afresh.

    final.ckpt comes first: where it is there without a record, the run was stopped while it was evaluated.
    Raises ValueError when the file is damaged or of another experiment.
    """
    for path in (checkpoints / "final.ckpt", checkpoints / "last.ckpt"):
        if path.is_file():
            if not same_experiment({"config": load_checkpoint(path)["experiment"]}, experiment):
                raise ValueError(f"{path}: of another experiment; delete it or choose another --run-dir")
            return path
    return None


def quiet() -> None:
    """Leaves out what Lightning and torch say at every start and no one can act on."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
    # Both optimizers follow one schedule; the discriminator's rests until its start step.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")  # data in memory needs none


def evaluate(
    trainer: L.Trainer, module: Any, data: L.LightningDataModule, images: ImageDataModule, output_dir: Path
) -> dict[str, float]:
    """Validation metrics of `module` on all validation data, by the module's own validation loop."""
    use_reference(module, images, output_dir)
    metrics, *_ = trainer.validate(module, data, verbose=False)  # the same for every loader
    return {name: float(value) for name, value in metrics.items()}


def use_reference(module: Any, images: ImageDataModule, output_dir: Path) -> None:
    """FID's real features: one file for all models that are measured against these images."""
    config = images.config
    val = f"{images.data_id}/val{config.val_size or ''}/seed{config.data_seed}/{config.image_size}px"
    train = f"{images.data_id}/train{config.train_size or ''}/seed{config.data_seed}/{config.image_size}px"
    if isinstance(module, Tokenizer):
        module.metrics.use_reference(output_dir / "references", pixels(images.val_dataloader()), val)
    elif isinstance(module, VIM) and module.config.generation.num_samples:
        uses_train = module.config.generation.reference == "train"
        loader = images.ordered_train_dataloader() if uses_train else images.val_dataloader()
        module.generation.use_reference(output_dir / "references", pixels(loader), train if uses_train else val)


def pixels(loader: Iterable[dict[str, Tensor]]) -> Iterator[Tensor]:
    return (batch["image"] for batch in loader)


def build_trainer(experiment: Experiment, run_dir: Path, *extra: Callback) -> L.Trainer:
    """A Lightning trainer that logs to and keeps its checkpoints in `run_dir`."""
    config, runtime = experiment.trainer, experiment.runtime
    accumulate = experiment.model.optimizer.accumulate
    on_terminal = sys.stdout.isatty()
    callbacks: list[Callback] = [
        ExperimentInCheckpoint(experiment.identity()),
        ModelCheckpoint(
            run_dir / "checkpoints",
            save_top_k=0,
            save_last=True,
            every_n_train_steps=config.checkpoint_every,
            enable_version_counter=False,
        ),
        LearningRateMonitor("step"),
        DISPLAYS.get(experiment.model.name, Dashboard)(),
        RandomState(),
        FiniteWeights(),
        TimeLeft() if on_terminal else ProgressLines(),
        *extra,
    ]
    if config.weight_ema:
        # use_buffers=False: averaging an EMA codebook's counts and sums once more would corrupt it
        callbacks.append(AveragedWeights(decay=config.weight_ema, use_buffers=False))
    automatic: dict[str, Any] = {}  # a tokenizer optimizes by hand
    if isinstance(experiment, Downstream):
        automatic["accumulate_grad_batches"] = accumulate
        automatic["gradient_clip_val"] = experiment.model.optimizer.gradient_clip or None
    return L.Trainer(
        accelerator=runtime.accelerator,
        devices=int(runtime.devices) if runtime.devices.isdigit() else runtime.devices,
        num_nodes=runtime.num_nodes,
        strategy=runtime.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        max_steps=config.max_steps,
        max_epochs=-1,
        val_check_interval=(config.validate_every or config.max_steps + 1) * accumulate,  # in batches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=TensorBoardLogger(run_dir, name="", version="", default_hp_metric=False),
        callbacks=callbacks,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        **automatic,
    )


def log_hyperparameters(trainer: L.Trainer, experiment: Experiment, metrics: dict[str, float]) -> None:
    """Final metrics beside the configuration, for TensorBoard's HPARAMS tab."""
    assert trainer.logger is not None
    values: dict[str, Any] = {
        key: value if isinstance(value, (int, float, bool, str)) else str(value)
        for key, value in flatten(experiment.identity()).items()
    }
    trainer.logger.log_hyperparams(values, {f"final/{name}": value for name, value in metrics.items()})
    trainer.logger.finalize("success")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.train",
        description="Train one experiment on the machine at hand and write its result record.",
        epilog="Keys are those of the YAML files, for example model.codebook_size=16384 data.batch_size=32 "
        "trainer.precision=bf16-mixed runtime.devices=8. The same command continues a run that was stopped.",
    )
    parser.add_argument("file", help="recipe, for example experiments/vqgan_lc_cifar10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | imagefolder (default: auto)")
    parser.add_argument("--run-dir", help="default: OUTPUT_DIR/experiments/NAME_DIGEST")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        experiment = resolve_data(load_experiment(arguments.file, arguments.overrides), arguments.data)
        name = Path(arguments.file).stem
        folder = Path(arguments.run_dir) if arguments.run_dir else run_dir(experiment, name)
        record = train(experiment, name, folder)
        print(f"finished: {folder}")
        for metric, value in sorted(record["metrics"].items()):
            print(f"  {metric:22} {value:12.4f}   {record['protocols'].get(metric, '')}")


if __name__ == "__main__":
    main()
