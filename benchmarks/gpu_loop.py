"""Timing on a GPU, and steps of Lightning's whole loop: what benchmarks/gpu.py measures with."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from datamodules import DataConfig, ImageDataModule
from datamodules.arrays import ArrayDataset
from experiments.config.compose import load_experiment
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_model
from experiments.runtime.trainer import build_trainer
from lightning_modules.quantizers import LargeCodebook

RECIPES = Path(__file__).parents[1] / "experiments"


class Bench(NamedTuple):
    """Where and how long to measure."""

    device: torch.device
    tiny: bool
    all: bool

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, function: Callable[[], object], runs: int = 7) -> float:
        """Median of `runs` calls, after one that allocates and compiles."""
        times = []
        for _ in range(2 if self.tiny else runs + 1):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def extra_mib(self, function: Callable[[], object]) -> float:
        """Peak of what one call allocates on the GPU; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0.0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return (torch.cuda.max_memory_allocated() - before) / 2**20


class RandomImages(ImageDataModule):
    """A batch of random pixels of the experiment's size, again and again: `data.train_size` images."""

    config: DataConfig
    num_classes, data_id = 10, "random"

    def load(self, split: str) -> ArrayDataset:
        size, side, count = self.config.batch_size, self.config.image_size, self.config.train_size or 0
        images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8).repeat(count // size, 1, 1, 1)
        return ArrayDataset(images, torch.arange(len(images)) % 10, flip=True)


class Pace(Callback):
    """Times `num_steps` steps that run on, then a few after each of which the host waits for the device."""

    def __init__(self, bench: Bench, warm_up: int, num_steps: int, num_apart: int) -> None:
        self.bench, self.warm_up, self.num_steps, self.num_apart = bench, warm_up, num_steps, num_apart
        self.start = self.step_seconds = 0.0
        self.enqueued: list[float] = []
        self.apart: list[float] = []

    @property
    def total(self) -> int:
        return self.warm_up + self.num_steps + self.num_apart

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        now, run_on = time.perf_counter(), self.warm_up + self.num_steps
        done = trainer.global_step
        if done == self.warm_up or done >= run_on:
            self.bench.wait()
        if done == run_on:
            self.step_seconds = (time.perf_counter() - self.start) / self.num_steps
        elif done > run_on:
            self.enqueued.append(now - self.start)
            self.apart.append(time.perf_counter() - self.start)
        if done == self.warm_up or done >= run_on:
            self.start = time.perf_counter()


def step_seconds(bench: Bench, label: str, recipe: str, *overrides: str) -> float:
    """Seconds of a step of a recipe; prints them, and how much of a step the host takes to enqueue it."""
    pace = Pace(bench, *((1, 2, 1) if bench.tiny else (15, 40, 8)))
    where = [f"runtime.accelerator={'gpu' if bench.device.type == 'cuda' else 'cpu'}", "runtime.devices=1"]
    long = [f"trainer.max_steps={pace.total}", "trainer.log_every=50", "trainer.checkpoint_every=1000000"]
    schedule = ["model.optimizer.warmup_steps=0", "model.optimizer.decay_from=0"]
    experiment = load_experiment(RECIPES / recipe, [*schedule, *overrides, *where, *long])
    module = untrained(experiment)
    data = RandomImages(replace(experiment.data, train_size=pace.total * experiment.data.batch_size), "")
    with tempfile.TemporaryDirectory() as folder:
        build_trainer(experiment, module, Path(folder), pace).fit(module, data)
    images = experiment.data.batch_size / pace.step_seconds
    apart, enqueued = statistics.median(pace.apart), statistics.median(pace.enqueued)
    print(
        f"{label:24}{1e3 * pace.step_seconds:9.2f} ms a step, {images:10,.0f} images/s; "
        f"alone {1e3 * apart:.2f} ms, of which the host takes {1e3 * enqueued:.2f} to enqueue it",
        flush=True,
    )
    return pace.step_seconds


def untrained(experiment: Experiment) -> Any:
    torch.manual_seed(0)
    module = build_model(experiment)
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn_like(module.quantizer.table))
    return module
