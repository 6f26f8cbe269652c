"""Lightning's trainer as this suite sets it up: its callbacks, its files, and how much it says."""

import logging
import sys
import warnings
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback, LearningRateMonitor

from experiments.config.experiment import Experiment
from experiments.runtime.callbacks import CapturedSteps, InCheckpoint, RandomState
from experiments.runtime.checkpoints import AtomicCheckpointIO, ResumePoints
from experiments.runtime.health import FiniteWeights
from experiments.runtime.loggers import build_loggers
from experiments.runtime.precision import precision_options
from experiments.runtime.progress import ProgressLines, TimeLeft
from experiments.runtime.ranks import SameStart, spread
from experiments.runtime.signals import StopRequest
from lightning_modules.base import Module
from lightning_modules.execution import run_as
from lightning_modules.lightning_fixes import AveragedWeights
from lightning_modules.pretrained import CHECKPOINT_FORMAT


def build_trainer(
    experiment: Experiment, module: Module, run_dir: Path, *extra: Callback, stop: StopRequest | None = None
) -> L.Trainer:
    """A Lightning trainer that logs to and keeps its checkpoints in `run_dir`; `stop`: what may ask it to end."""
    config, runtime = experiment.trainer, experiment.runtime
    optimizer = experiment.model.optimizer
    on_terminal = sys.stdout.isatty()
    callbacks: list[Callback] = [
        InCheckpoint(format=CHECKPOINT_FORMAT, experiment=experiment.identity()),
        ResumePoints(run_dir / "checkpoints", config.checkpoint_every, stop or StopRequest()),
        LearningRateMonitor("step"),
        SameStart(),
        RandomState(),
        FiniteWeights(),
        TimeLeft() if on_terminal else ProgressLines(),
        *extra,
    ]
    if config.compile == "graphs":
        callbacks.append(CapturedSteps())
    if config.weight_ema:
        callbacks.append(AveragedWeights(config.weight_ema, config.weight_ema_ramp))
    accumulate, clip = optimizer.accumulate, optimizer.gradient_clip or None
    if not module.automatic_optimization:  # it accumulates and clips by hand
        accumulate, clip = 1, None
    run_as(module, config.memory_format, config.compile)
    precision = precision_options(config.precision, runtime)
    precision["plugins"].append(AtomicCheckpointIO())
    return L.Trainer(
        accelerator=runtime.accelerator,
        max_steps=config.max_steps,
        max_epochs=-1,
        val_check_interval=(config.validate_every or config.max_steps + 1) * optimizer.accumulate,  # in batches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        logger=build_loggers(runtime, run_dir),
        callbacks=callbacks,
        enable_progress_bar=on_terminal,
        enable_model_summary=False,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        **spread(experiment),
        **precision,
    )


def quiet() -> None:
    """Silences messages that Lightning and torch print at every start and that need no action."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        "Detected call of `lr_scheduler.step",  # both optimizers follow one, the discriminator's rests until its start
        ".*does not have many workers.*",  # data in memory needs none
        ".*It is recommended to use .*sync_dist=True",  # they are all ranks' already
        ".*broadcast_buffers",  # what newer torch calls it, older does not know
    ):
        warnings.filterwarnings("ignore", message=message)
