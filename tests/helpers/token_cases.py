"""Shared by the tests of tokens: a checkpoint whose codes are all in use, and the command."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from torch import Tensor

from datamodules import TokensConfig, TokensDataModule
from experiments import tokenize
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, build_model

SIZES = ["data.train_size=20", "data.val_size=10"]  # images


@torch.no_grad()
def save(experiment: Experiment, path: Path, first_used: int = 0) -> Path:
    """A checkpoint of an untrained VQGAN whose codes from `first_used` on are latents of its images, the others far."""
    torch.manual_seed(0)
    module = build_model(experiment).eval()
    images = next(iter(build_data(experiment).ordered_train_dataloader()))["image"]
    latents = module.pre_quant(module.encoder(images)).flatten(0, 2)  # (N, d)
    module.quantizer.codes[:first_used] = 1e3
    used = module.quantizer.codes[first_used:]
    used.copy_(latents[torch.randperm(len(latents))[: len(used)]])
    content = {"experiment": experiment.identity(), "state_dict": module.state_dict(), "generator_steps": 0}
    torch.save(content, path)
    return path


def arguments(experiment: Experiment, checkpoint: Path, *more: str) -> list[str]:
    runtime = experiment.runtime
    where = ["--output-dir", runtime.output_dir, "--data-dir", runtime.data_dir, "--batch-size", "4"]
    return ["tokenize", str(checkpoint), *where, "runtime.accelerator=cpu", *SIZES, *more]


def run(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", list(command))
        tokenize.main()


def folder_of(experiment: Experiment) -> Path:
    (folder,) = (path for path in (Path(experiment.runtime.output_dir) / "tokens").iterdir() if path.is_dir())
    return folder


def served(folder: Path, **options: Any) -> TokensDataModule:
    data = TokensDataModule(TokensConfig(path=str(folder), batch_size=4, val_batch_size=5, **options))
    data.setup()
    return data


def all_of(loader: Any) -> dict[str, Tensor]:
    batches = [*loader]
    return {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_all(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> tuple[list[str], Path]:
    """The command without --out, and a folder written without a stop."""
    experiment = tiny()
    command = arguments(experiment, save(experiment, tmp_path / "final.ckpt"), "--flip", *more)
    run(monkeypatch, *command, "--out", str(tmp_path / "whole"))
    return command, tmp_path / "whole"
