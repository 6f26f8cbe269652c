"""Shared by all tests: one thread, and a tiny experiment on rendered shapes that trains in a moment."""

import functools
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.config.compose import compose, parse
from experiments.config.experiment import MODULES, Experiment
from experiments.config.values import from_dotlist
from experiments.pipeline import classifier
from experiments.pipeline.codebooks import extraction
from lightning_modules import tokenizer
from lightning_modules.losses import LossConfig, perceptual
from lightning_modules.metrics import extractors
from lightning_modules.networks.encoders import PretrainedEncoder, load_encoder
from lightning_modules.optimizer import OptimizerConfig

torch.set_num_threads(1)

# 16 x 16 pixels, 8 x 8 tokens, 32 codes; every number is as small as the networks and metrics allow.
TINY_BACKBONES: dict[str, dict[str, Any]] = {
    "cnn": {
        "name": "cnn",
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "latent_channels": 16,
    },
    "vit": {"name": "vit", "patch_size": 2, "encoder_dims": [1, 2, 32, 64], "decoder_dims": [1, 2, 32, 64]},
}
TINY_DISCRIMINATORS: dict[str, dict[str, Any]] = {
    "vqgan": {"name": "patchgan", "channels": 8, "num_layers": 1},
    "vit_vqgan": {"name": "stylegan", "channel_base": 128, "max_channels": 16},
}
TINY_LARGE_CODEBOOK = {
    "feature_dim": 40,
    "source": {
        "encoder": "efficientnet-lite0",
        "encoder_image_size": 32,
        "stage": 3,
        "pool": 1,
        "method": "random",
        "num_images": 40,
    },
}
PLAIN_LOSS = LossConfig(l2=1.0, perceptual_network="efficientnet-lite0")  # L2 and VQ: no paper's, and fast
TinyExperiment = Callable[..., Experiment]
RUNS_GPU_TESTS = torch.cuda.is_available() or "GPU_CHECK_DEVICE" in os.environ
SLOW = [line for line in Path(__file__).with_name("slow.txt").read_text().split("\n") if line and line[0] != "#"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of slow.txt, and puts their files first, in that order. Marks those that need a GPU, and skips
    them where there is none."""
    files = [entry.partition("::")[0] for entry in SLOW]
    place: dict[pytest.Item, int] = {}
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        name = getattr(item, "originalname", item.name)
        if file in SLOW or f"{file}::{name}" in SLOW:
            item.add_marker("slow")
        if file.startswith("gpu/"):
            item.add_marker("gpu")
            item.add_marker(
                pytest.mark.skipif(not RUNS_GPU_TESTS, reason="needs a GPU; GPU_CHECK_DEVICE=cpu tries the test")
            )
        place[item] = files.index(file) if file in files else len(files)
    items.sort(key=place.__getitem__)


TOKENIZERS = [name for name, (cls, _) in MODULES.items() if issubclass(cls, tokenizer.Tokenizer)]


@functools.cache
def load_once(name: str, input_size: int = 224) -> PretrainedEncoder:
    """An encoder that is read from disk once; the first to ask for it draws no random numbers either."""
    with torch.random.fork_rng():
        return load_encoder(name, input_size)


ENCODER_USERS = (extractors, perceptual, extraction, classifier)


@pytest.fixture
def shared_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics, losses and codebooks share one frozen encoder instead of reading its weights again and again."""
    for module in ENCODER_USERS:
        monkeypatch.setattr(module, "load_encoder", load_once)


@pytest.fixture
def tiny(tmp_path: Path, shared_encoders: None) -> TinyExperiment:
    """tiny(model name, "key=value", ...) -> a checked Experiment that trains three steps of four images."""
    return functools.partial(tiny_experiment, tmp_path)


def tiny_experiment(folder: Path, name: str = "vqgan", *overrides: str) -> Experiment:
    """As the fixture `tiny`, with its output in `folder`."""
    is_vit = name == "vit_vqgan"
    model: dict[str, Any] = {
        "name": name,
        "codebook_size": 32,
        "code_dim": 8,
        "backbone": TINY_BACKBONES["vit" if is_vit else "cnn"],
        "discriminator": TINY_DISCRIMINATORS["vit_vqgan" if is_vit else "vqgan"],
        "loss": asdict(PLAIN_LOSS),
        "optimizer": asdict(OptimizerConfig(lr=3e-3)),
        "metrics": {"extractor": "efficientnet-lite0", "extractor_image_size": 32, "lpips": "none"},
    }
    if name == "vqgan_lc":
        model["quantizer"] = TINY_LARGE_CODEBOOK
    if name in ("vqgan", "vqgan_fc"):
        model["quantizer"] = {"commitment_weight": 0.25, "codebook_weight": 1.0}
    values = {
        "data": {"name": "shapes", "image_size": 16, "batch_size": 4, "train_size": 16, "val_size": 12},
        "model": model,
        "trainer": {"max_steps": 3, "checkpoint_every": 1000, "log_every": 1},
        "runtime": {"output_dir": str(folder / "runs"), "data_dir": str(folder / "data"), "accelerator": "cpu"},
    }
    return parse(compose(values, from_dotlist(overrides)), "tiny")


class LargestResult(TorchDispatchMode):
    """Within this context, `numel` is the size of the largest tensor that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.fixture
def no_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their networks are in no checkpoint, and take longer to read than a small model takes to import."""
    monkeypatch.setattr(tokenizer, "TokenizerMetrics", lambda *_: nn.Identity())
