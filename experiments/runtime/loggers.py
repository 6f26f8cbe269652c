"""Where a run's numbers go beside its record: Lightning's loggers, by the key `runtime.loggers`.

In all of them metrics of a validation are val/NAME and those of a whole training epoch train/NAME; others keep theirs.
"""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from experiments.config.experiment import RuntimeConfig
from lightning_modules.checks import require

PACKAGES = {"tensorboard": "tensorboard", "csv": "", "wandb": "wandb", "mlflow": "mlflow"}
PROJECT = "vq-image-modeling"  # in W&B, where $WANDB_PROJECT does not say otherwise, and in MLflow


def names_of(runtime: RuntimeConfig) -> list[str]:
    return [name.strip() for name in runtime.loggers.split(",")]


def check_loggers(runtime: RuntimeConfig) -> None:
    """Raises ValueError for a logger that is unknown, or whose package is missing."""
    for name in names_of(runtime):
        key = f"runtime.loggers={runtime.loggers}"
        require(name in PACKAGES, f"{key}: '{name}' is none of {', '.join(PACKAGES)}")
        package = PACKAGES[name]
        require(not package or find_spec(package) is not None, f"{key} needs `pip install {package}`, or leave it out")


class Tagged:
    """Mixin of Lightning's loggers."""

    is_validating = False  # `Dashboard` sets it

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        kept = {name: value for name, value in metrics.items() if name != "epoch"}  # Lightning's, with each number
        tags = {validation_tag(name) if self.is_validating else train_tag(name): kept[name] for name in kept}
        super().log_metrics(tags, step)  # type: ignore[misc]


class TensorBoard(Tagged, TensorBoardLogger):  # type: ignore[misc]  # mixed in before
    def save(self) -> None:
        """Without Lightning's hparams.yaml, which is empty until the end: config.yaml is there from the start."""
        self.experiment.flush()


def tagged(kind: Any) -> Any:
    """A logger of Lightning's with this suite's tags."""
    return type(kind.__name__, (Tagged, kind), {})


def validation_tag(name: str) -> str:
    """The tag of a validation's metric, such as val/usage of usage/val."""
    return f"val/{name.removesuffix('/val')}"


def train_tag(name: str) -> str:
    return f"train/{name.removesuffix('/epoch')}" if name.endswith("/epoch") else name


def build_loggers(runtime: RuntimeConfig, run_dir: Path) -> list[Logger]:
    """A run that is continued goes on in TensorBoard and W&B; CSV and MLflow begin another version."""
    made: dict[str, Any] = {
        "tensorboard": lambda: TensorBoard(run_dir, name="", version="", default_hp_metric=False),
        "csv": lambda: tagged(CSVLogger)(run_dir, name="csv"),
        "wandb": lambda: tagged(WandbLogger)(
            run_dir.name, run_dir, id=run_dir.name, resume="allow", project=os.environ.get("WANDB_PROJECT", PROJECT)
        ),
        "mlflow": lambda: tagged(MLFlowLogger)(
            PROJECT,
            run_dir.name,
            os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{run_dir.parent.absolute()}/mlflow.db",
        ),
    }
    return [made[name]() for name in names_of(runtime)]


def tensorboard(trainer: L.Trainer) -> SummaryWriter | None:
    """Where pictures and texts go; None on other ranks and without TensorBoard."""
    found = (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoard))
    return next(found, None) if trainer.is_global_zero else None


def log_hyperparameters(trainer: L.Trainer, values: dict[str, Any], metrics: Iterable[str]) -> None:
    """A row of TensorBoard's HPARAMS tab: `values`, and the newest numbers of a validation's `metrics`."""
    if writer := tensorboard(trainer):
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}
        for summary in hparams(plain, {validation_tag(name): 0.0 for name in sorted(metrics)}):
            writer._get_file_writer().add_summary(summary)
