"""What is in a checkpoint, when one is made, and what goes on from it."""

import random
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from resume_cases import differences
from torch import Tensor

from datamodules.arrays import ArrayDataset
from datamodules.base import Batch, DataConfig, ImageDataModule
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, build_model, restore
from experiments.pipeline.training import train
from experiments.runtime import checkpoints
from experiments.runtime.callbacks import random_state, set_random_state
from experiments.runtime.signals import StopRequest
from experiments.runtime.trainer import build_trainer
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.tokenizer import Tokenizer


def fit(experiment: Experiment, folder: Path, resumed: Path | None = None, **options: Any) -> dict[str, Any]:
    """The checkpoint at the end of training, without evaluation."""
    L.seed_everything(experiment.seed, verbose=False)
    module = build_model(experiment)
    trainer = build_trainer(experiment, module, folder, **options)
    trainer.fit(module, build_data(experiment), ckpt_path=resumed, weights_only=True)
    trainer.save_checkpoint(folder / "final.ckpt")
    return load_checkpoint(folder / "final.ckpt")


def test_content(tiny: TinyExperiment, tmp_path: Path) -> None:
    """Plain, with its format's version, and without perceptual network, encoder or extractor."""
    experiment = tiny("vqgan_lc", "model.loss={perceptual: 1, adversarial: 0.1}", "trainer.weight_ema=0.5")
    train(experiment, "x", tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints/final.ckpt", weights_only=True)
    assert checkpoint["format"] == 1 and checkpoint["experiment"] == experiment.identity()
    parts = {"encoder", "decoder", "pre_quant", "post_quant", "quantizer", "discriminator"}
    for key in ("state_dict", "current_model_state"):
        assert {name.split(".")[0] for name in checkpoint[key]} == parts
    assert {name.split(".")[0] for name in checkpoint["averaging_state"]} == {"n_averaged"}
    assert len(checkpoint["optimizer_states"]) == len(checkpoint["lr_schedulers"]) == 2
    sizes = [value.numel() for key in ("state_dict", "current_model_state") for value in checkpoint[key].values()]
    moments = [v.numel() for s in checkpoint["optimizer_states"] for p in s["state"].values() for v in p.values()]
    size = (tmp_path / "checkpoints/final.ckpt").stat().st_size
    assert size < 4 * (sum(sizes) + sum(moments)) + 400_000, "EfficientNet alone has 19 MB"


@pytest.mark.parametrize("version", [2, 0, "1.5", None])
def test_another_format_is_refused(tiny: TinyExperiment, tmp_path: Path, version: Any) -> None:
    experiment, path = tiny(), tmp_path / "checkpoints/last.ckpt"
    path.parent.mkdir()
    torch.save({"format": version, "experiment": experiment.identity(), "state_dict": {}}, path)
    message = rf"last\.ckpt: checkpoint format {version}, this version reads 1: use the version of the suite"
    with pytest.raises(ValueError, match=message):
        restore(path)
    with pytest.raises(ValueError, match=message):
        train(experiment, "x", tmp_path)


def test_random_numbers_come_back() -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist()]

    before = random_state()
    try:
        random.gauss(0, 1), np.random.normal()  # both keep a second number
        state = random_state()
        expected = draw()
        draw()
        set_random_state(state)
        assert draw() == expected
    finally:
        set_random_state(before)


def test_checkpoints_by_time(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """checkpoint_every is far away; saving may take as long as it wants, or no time at all."""
    saved: list[int] = []
    monkeypatch.setattr(checkpoints.ResumePoints, "save", lambda self, trainer: saved.append(self.step))
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 0.0)
    fit(tiny("vqgan", "trainer.max_steps=4", "model.optimizer.accumulate=2"), tmp_path)
    assert saved == [1, 2, 3], "after whole steps, and not after the last"
    saved.clear()
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 3600.0)
    fit(tiny("vqgan", "trainer.max_steps=5", "trainer.checkpoint_every=2"), tmp_path)
    assert saved == [2, 4]


def test_an_expensive_checkpoint_is_made_less_often(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that goes on a second a step: a save that takes one, of which 5 % are allowed, waits for twenty."""
    saved: list[int] = []
    clock = [0.0]

    def save(self: checkpoints.ResumePoints, trainer: L.Trainer) -> None:
        saved.append(self.step)
        clock[0] += 1

    step = Tokenizer.training_step

    def training_step(self: Tokenizer, batch: dict[str, Tensor], batch_idx: int) -> None:
        clock[0] += 1
        step(self, batch, batch_idx)

    monkeypatch.setattr(Tokenizer, "training_step", training_step)
    monkeypatch.setattr(L.Trainer, "save_checkpoint", lambda trainer, path: save(trainer.checkpoint_callback, trainer))
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "SAVE_SECONDS", 5.0)
    experiment = tiny("vqgan", "trainer.max_steps=30")
    module = build_model(experiment)
    trainer = build_trainer(experiment, module, tmp_path, stop=StopRequest())
    trainer.fit(module, build_data(experiment))
    assert saved == [5, 25]


def test_a_finished_run_can_be_made_longer(tiny: TinyExperiment, tmp_path: Path) -> None:
    """Stopped by max_steps within an epoch, and given more: the rest of that epoch comes next."""
    options = ["data.flip=true", "model.optimizer.min_lr=3e-3", "model.loss.adversarial=0.1"]  # a constant rate
    straight = fit(tiny("vqgan", "trainer.max_steps=10", *options), tmp_path / "straight")
    fit(tiny("vqgan", "trainer.max_steps=6", *options), tmp_path / "short")
    longer = fit(tiny("vqgan", "trainer.max_steps=10", *options), tmp_path / "longer", tmp_path / "short/final.ckpt")
    keys = ("state_dict", "optimizer_states", "loops", "generator_steps", "epoch_counts")
    assert [d for key in keys for d in differences(longer[key], straight[key], key)] == []


def test_the_first_epochs_usage_is_in_its_last_checkpoint(tiny: TinyExperiment, tmp_path: Path) -> None:
    """A run that continues from there has nothing to train, and still has that usage."""
    experiment = tiny("vqgan", "trainer.max_steps=3", "trainer.validate_every=3")
    straight = fit(experiment, tmp_path / "a")
    last = load_checkpoint(tmp_path / "a/checkpoints/last.ckpt")
    assert last["epoch_usage"] == straight["epoch_usage"] and last["epoch_usage"]["usage/epoch"] > 0
    again = fit(experiment, tmp_path / "b", tmp_path / "a/checkpoints/last.ckpt")
    assert again["epoch_usage"] == straight["epoch_usage"] and again["usage_by_epoch"] == straight["usage_by_epoch"]


# ---- loader processes


class Numbers(ImageDataModule):
    """Twenty images, each of one value on its left."""

    num_classes, data_id = 20, "numbers"

    def load(self, split: str) -> ArrayDataset:
        images = torch.zeros(20, 3, 2, 2, dtype=torch.uint8)
        images[..., 0] = torch.arange(20, dtype=torch.uint8).view(20, 1, 1)
        return ArrayDataset(images, torch.arange(20), flip=True)


def loader(num_workers: int) -> Any:
    data = Numbers(DataConfig(batch_size=4), "", num_workers=num_workers, seed=5)
    data.setup("fit")
    return data.train_dataloader()


def epoch(batches: Any, number: int) -> list[Batch]:
    batches.sampler.set_epoch(number)
    return [*batches]


def test_loader_processes_go_on_where_they_were() -> None:
    """The same flips whatever the processes have made before, and whatever their number."""
    whole = loader(2)
    first, second = epoch(whole, 0), epoch(whole, 1)
    mirrored = [torch.cat([batch["image"][:, 0, 0, 1] > -1 for batch in batches]) for batches in (first, second)]
    assert all(0 < flips.sum() < 20 for flips in mirrored) and not torch.equal(*mirrored)
    again = loader(1)
    again.load_state_dict({"num_given": 3})
    assert again.state_dict() == {"num_given": 3}, "also before the first batch"
    rest = epoch(again, 1)
    assert differences(rest, second[3:]) == [] and len(rest) == 2
    assert again.state_dict() == {"num_given": 0}
