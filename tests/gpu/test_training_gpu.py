"""Training on a GPU: what a CPU gives, in each precision; batches, continued runs and records."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from gpu_runs import DEVICE, Losses, fit, known, on_gpu
from latent_cases import tiny_latents
from lightning.pytorch.callbacks import Callback
from vim_cases import tiny_vim

from experiments.pipeline.build import build_data
from experiments.pipeline.training import train
from lightning_modules.pretrained import load_checkpoint

GAME = "model.loss={l2: 1, perceptual: 0.1, perceptual_network: efficientnet-lite0, adversarial: 0.1, r1: 1}"
CELLS = {
    "vqgan": [],
    "vqgan_fc": [],
    "vqgan_ema": ["model.quantizer.init=random"],  # codes that are placed are drawn by the device's own generator
    "vqgan_lc": [],
    "vit_vqgan": [],
}
MODES = {
    "bf16": ["trainer.precision=bf16-mixed"],
    "bf16, channels last": ["trainer.precision=bf16-mixed", "trainer.memory_format=channels_last"],
    "float16": ["trainer.precision=16-mixed"],
    "graphs": ["trainer.precision=bf16-mixed", "trainer.compile=graphs"],
}


class FullFloat32(Callback):
    """No TF32, as on a CPU, whatever the trainer has chosen."""

    def on_train_start(self, *_: Any) -> None:
        self.precisions = [(backend, backend.fp32_precision) for backend in self.backends()]
        for backend in self.backends():
            backend.fp32_precision = "ieee"

    def on_train_end(self, *_: Any) -> None:
        for backend, precision in self.precisions:
            backend.fp32_precision = precision

    @staticmethod
    def backends() -> list[Any]:
        return [torch.backends.cuda.matmul, torch.backends.cudnn.conv]  # type: ignore[attr-defined]


@pytest.mark.parametrize("model", CELLS)
def test_a_step_in_float32_is_that_of_a_cpu(tiny: TinyExperiment, tmp_path: Path, model: str) -> None:
    """All losses of the first step, and of the second, which depend on the first one's gradients."""
    steps = []
    for accelerator in ("cpu", on_gpu()[0].split("=")[1]):
        options = [GAME, "trainer.max_steps=2", "data.flip=true", *CELLS[model], *on_gpu(accelerator)]
        losses = Losses()
        fit(known(tiny, model, *options), tmp_path / accelerator, losses, FullFloat32())
        steps.append([{name: float(value) for name, value in step.items()} for step in losses.steps])
    (first, second), (first_gpu, second_gpu) = steps
    assert {"loss/generator", "loss/discriminator", "loss/r1"} <= first.keys() == first_gpu.keys()
    for name in first:
        if name.startswith("loss/"):
            rounding = 1e-3 if name == "loss/r1" else 1e-4  # of a gradient
            assert first_gpu[name] == pytest.approx(first[name], rel=rounding, abs=1e-5), name
    assert second_gpu["loss/generator"] == pytest.approx(second["loss/generator"], rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_falls(tiny: TinyExperiment, tmp_path: Path, mode: str) -> None:
    sizes = ["data.batch_size=16", "data.train_size=64", "trainer.max_steps=60"]
    losses = Losses()
    fit(known(tiny, "vqgan_fc", *sizes, *MODES[mode], *on_gpu()), tmp_path, losses)
    l2 = losses.of("loss/l2")
    assert sum(l2[-5:]) < 0.7 * sum(l2[:5]), l2


@pytest.mark.parametrize("model", ["vqgan_lc", "vit_vqgan"])
def test_graphs_replay_the_steps(tiny: TinyExperiment, tmp_path: Path, model: str) -> None:
    """Each combination of game, adaptive weight and R1 is a graph of its own; the numbers are those without graphs."""
    starts = "discriminator_start: 4, adversarial_start: 4"
    every = f"{GAME[:-1]}, {starts}, adaptive_weight: true, adaptive_every: 2, r1_every: 3}}"
    sizes = ["data.train_size=24", "trainer.max_steps=24"]
    runs = []
    for mode in ("none", "graphs"):
        losses = Losses()
        fit(
            known(tiny, model, every, *sizes, f"trainer.compile={mode}", *on_gpu()),
            tmp_path / mode,
            losses,
            FullFloat32(),
        )
        runs.append(losses)
    plain, graphed = runs
    assert graphed.of("loss/generator") == pytest.approx(plain.of("loss/generator"), rel=2e-2, abs=1e-3)
    late = [[float(step["loss/discriminator"]) for step in run.steps[4:]] for run in runs]
    assert late[1] == pytest.approx(late[0], rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("model", ["vim", "unconditional vim", "sit", "dit", "ldm"])
def test_the_network_of_a_prior_is_replayed(tiny: TinyExperiment, tmp_path: Path, model: str) -> None:
    """With the losses of a run without graphs, in training and in the validation at its end."""
    is_vim = model.endswith("vim")
    records, plain, graphed = [], Losses(), Losses()
    for mode, losses in (("none", plain), ("graphs", graphed)):
        options = ["model.generation.num_samples=0", "trainer.max_steps=12", f"trainer.compile={mode}"]
        options += [f"runtime.output_dir={tmp_path / mode}"]  # a finished run is not trained again
        options += ["model.class_conditional=false"] if model.startswith("unconditional") else []
        make = partial(tiny_vim, tiny) if is_vim else partial(tiny_latents, tiny, model)
        experiment = make(*options, upstream=on_gpu())
        records.append(train(experiment, model, tmp_path / mode / "run", callbacks=[losses, FullFloat32()]))
    assert len(plain.steps) == 12
    assert graphed.of("loss/generator") == pytest.approx(plain.of("loss/generator"), rel=2e-2, abs=1e-3)
    name = "bits_per_token/val" if is_vim else "loss/val"
    assert records[1]["metrics"][name] == pytest.approx(records[0]["metrics"][name], rel=2e-2)


@contextmanager
def attached(data: Any, device: torch.device) -> Iterator[Any]:
    strategy = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=strategy)
    yield data.train_dataloader()


def test_the_gpu_makes_the_batches_of_the_cpu(tiny: TinyExperiment) -> None:
    """Bit for bit, flips included, from the images in its memory."""
    experiment = known(tiny, "vqgan", "data.flip=true", "data.train_size=40", *on_gpu())
    epochs = []
    for device in (torch.device("cpu"), DEVICE):
        with attached(build_data(experiment), device) as loader:
            torch.manual_seed(3)
            epochs.append([*loader])
    for expected, batch in zip(*epochs, strict=True):
        assert all(batch[key].device.type == DEVICE.type for key in batch)
        assert all(torch.equal(batch[key].cpu(), expected[key]) for key in expected)


class Keep(Callback):
    """Writes a checkpoint after two steps."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 2:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("model", ["vqgan_ema", "vqgan_lc"])
def test_a_continued_run(tiny: TinyExperiment, tmp_path: Path, model: str) -> None:
    """Its losses are those of one that was not stopped, but for kernels that add up in an order of their own."""
    experiment = known(tiny, model, GAME, "trainer.max_steps=5", "data.flip=true", *on_gpu())
    half = tmp_path / "half.ckpt"
    straight, continued = Losses(), Losses()
    fit(experiment, tmp_path / "a", Keep(half), straight)
    assert load_checkpoint(half)["global_step"] == 2
    fit(experiment, tmp_path / "b", continued, checkpoint=half)
    for name in ("loss/generator", "loss/quantizer", "loss/discriminator"):
        assert continued.of(name) == pytest.approx(straight.of(name)[2:], rel=1e-3, abs=1e-5), name


def test_a_record_names_the_device(tiny: TinyExperiment, tmp_path: Path) -> None:
    record: Any = train(tiny("vqgan", *on_gpu()), "x", tmp_path / "run")
    assert record["device"].startswith(DEVICE.type)
    if DEVICE.type == "cuda":
        assert torch.cuda.get_device_name() in json.dumps(record)
        assert record["peak_device_memory_bytes"] > 0
