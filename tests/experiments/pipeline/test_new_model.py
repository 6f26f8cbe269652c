"""A model that has nothing to do with tokens takes one file and one line: CONTRIBUTING.md promises it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyExperiment
from torch import Tensor, nn

from experiments.config.compose import parse
from experiments.config.experiment import MODULES, Experiment
from experiments.costs.report import preview
from experiments.pipeline.build import restore
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from lightning_modules.base import Module, ModuleConfig, Setting
from lightning_modules.parts import Part
from sweeps import grid


@dataclass
class PixelsConfig(ModuleConfig):
    name: str = "pixels"


class Pixels(Module):
    """Classes of pixels."""

    config: PixelsConfig
    progress_metric = "loss"

    def __init__(self, config: PixelsConfig, setting: Setting) -> None:
        super().__init__()
        self.config, self.num_classes = config, setting.num_classes
        self.layer = nn.Linear(3 * setting.image_size**2, setting.num_classes)

    @property
    def sizes(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.layer(batch["image"].flatten(1)), batch["label"])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        is_right = self.layer(batch["image"].flatten(1)).argmax(1) == batch["label"]
        self.log("top1", is_right.float().mean(), batch_size=len(is_right))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def protocols(self) -> dict[str, str]:
        return {"top1": "top1/val"}


class WithParts(Pixels):
    @classmethod
    def parts(cls, config: Any, setting: Setting) -> list[Part]:
        layer = nn.Linear(3 * setting.image_size**2, setting.num_classes)
        return [Part("layer", layer, (torch.empty(1, 3 * setting.image_size**2),))]


@pytest.fixture
def pixels(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.setitem(MODULES, "pixels", (Pixels, PixelsConfig))
    values = {
        "data": {"name": "shapes", "image_size": 16, "batch_size": 4, "train_size": 8, "val_size": 6},
        "model": {"name": "pixels"},
        "trainer": {"max_steps": 3, "validate_every": 2},
        "runtime": vars(tiny().runtime),
    }
    return parse(values, "test")


def test_it_trains_and_is_restored(pixels: Experiment) -> None:
    folder = run_dir(pixels, "x")
    assert folder.name.startswith("x_s0_"), "it has no codebook"
    record = train(pixels, "x", folder)
    assert set(record["metrics"]) == {"top1"} and record["parameters"] == 7690
    assert train(pixels, "x", folder) == record and Path(folder / "checkpoints/final.ckpt").is_file()
    restored, module = restore(folder / "checkpoints/final.ckpt")
    assert isinstance(module, Pixels) and restored.identity() == pixels.identity()


def test_its_costs(pixels: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a pixels tells no `parts`"):
        preview(pixels, "x", 1, 1.0)
    monkeypatch.setitem(MODULES, "pixels", (WithParts, PixelsConfig))
    assert preview(pixels, "x", 1, 1.0).row_count > 5


SWEEP = """
title: A test
objective: top1
tables:
  - id: one
    title: Pixels
    paper: "a paper"
    row_heads: [model]
    columns: [{metric: top1, head: top-1}]
    cells: [{experiment: pixels, row: {model: pixels}}]
"""


def test_it_is_a_row_of_a_sweep_at_every_scale(
    pixels: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a scale's overlay it takes the keys that it has: none of losses and codes."""
    monkeypatch.setattr(grid, "EXPERIMENTS", tmp_path)
    (tmp_path / "pixels_cifar10.yaml").write_text("data: {name: shapes}\nmodel: {name: pixels}\n")
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    for scale in ("quick", "reduced"):
        (run,) = grid.load_grid(tmp_path / "sweep.yaml", scale, "1").runs
        overlay = grid.load_scale(scale).overrides
        expected = overlay.get("model.optimizer.warmup_steps", PixelsConfig().optimizer.warmup_steps)
        assert run.experiment.model.optimizer.warmup_steps == expected
        assert run.experiment.data.train_size == overlay.get("data.train_size", 10_000)
