"""Shared by the tests of VIM: a tiny transformer on a tiny tokenizer, on rendered shapes."""

from typing import Any

import torch
from conftest import TinyExperiment

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import build_model
from lightning_modules.base import Setting
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM

GENERATION = {"extractor": "efficientnet-lite0", "extractor_image_size": 32, "num_samples": 12, "batch_size": 5}


def tiny_vim(tiny: TinyExperiment, *overrides: str, upstream: list[str] | None = None) -> Experiment:
    """64 tokens of 32 codes, one block; a tokenizer of one step."""
    below = tiny("vqgan", "trainer.max_steps=1", *(upstream or []))
    values: dict[str, Any] = {
        "data": {"name": "shapes", "image_size": 16, "batch_size": 4, "train_size": 16, "val_size": 12},
        "model": {
            "name": "vim",
            "gpt": {"dims": [1, 2, 16, 32]},
            "encode_on_the_fly": False,
            "optimizer": {"lr": 3e-3, "warmup_steps": 0, "decay_from": 0},
            "generation": GENERATION,
        },
        "trainer": {"max_steps": 3, "checkpoint_every": 1000, "log_every": 1},
        "runtime": vars(below.runtime),
        "upstream": {"recipe": "vqgan_cifar10.yaml", **below.identity()},
    }
    return parse(merge(values, from_dotlist(overrides)), "tiny_vim")


def build(experiment: Experiment, seed: int = 0) -> tuple[VIM, Tokenizer]:
    """An untrained VIM with an untrained tokenizer, without files."""
    torch.manual_seed(seed)
    tokenizer = build_model(experiment.upstream)
    setting = Setting(16, 10, experiment.tokenizer.codebook_size, (8, 8), None, tokenizer, "untrained")
    module = build_model(experiment, setting)
    return module, tokenizer
