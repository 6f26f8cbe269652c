"""Shared by the tests of LDM, DiT and SiT: tiny networks on the latents of a tiny tokenizer, on rendered shapes."""

from typing import Any

import torch
from conftest import TinyExperiment
from vim_cases import GENERATION

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import build_model
from lightning_modules.base import Setting
from lightning_modules.latent_prior import LatentPrior
from lightning_modules.tokenizer import Tokenizer

NETWORKS: dict[str, dict[str, Any]] = {
    "sit": {"dit": {"dims": [1, 32, 2]}, "sampling": {"steps": 3}},
    "dit": {"dit": {"dims": [1, 32, 2]}, "sampling": {"steps": 3}},
    "ldm": {
        "unet": {
            "channels": 32,
            "channel_multipliers": [1],
            "num_res_blocks": 1,
            "attention_factors": [1],
            "context_width": 8,
        },
        "sampling": {"steps": 4},
    },
}
NAMES = list(NETWORKS)


def tiny_latents(tiny: TinyExperiment, name: str, *overrides: str, upstream: list[str] | None = None) -> Experiment:
    """Latents of 8 x 8 x 8, patches of 2 x 2 where there are patches; a tokenizer of one step."""
    below = tiny("vqgan", "trainer.max_steps=1", *(upstream or []))
    guidance = {"guidance_scale": 1.0, "guided_channels": 0}
    values: dict[str, Any] = {
        "data": {"name": "shapes", "image_size": 16, "batch_size": 4, "train_size": 16, "val_size": 12},
        "model": {
            "name": name,
            "encode_on_the_fly": False,
            "optimizer": {"lr": 3e-3, "min_lr": 3e-3},
            "sampling": guidance,
            "generation": GENERATION,
        },
        "trainer": {"max_steps": 3, "checkpoint_every": 1000, "log_every": 1},
        "runtime": vars(below.runtime),
        "upstream": {"recipe": "vqgan_cifar10.yaml", **below.identity()},
    }
    values = merge(values, {"model": NETWORKS[name]})
    return parse(merge(values, from_dotlist(overrides)), f"tiny_{name}")


def build(experiment: Experiment, seed: int = 0) -> tuple[LatentPrior, Tokenizer]:
    """An untrained model, none of whose weights is zero, with an untrained tokenizer, without files."""
    torch.manual_seed(seed)
    tokenizer = build_model(experiment.upstream)
    setting = Setting(
        16,
        10,
        experiment.tokenizer.codebook_size,
        (8, 8),
        tokenizer=tokenizer,
        tokenizer_digest="untrained",
        code_dim=8,
    )
    return build_model(experiment, setting), tokenizer


@torch.no_grad()
def shaken(module: LatentPrior) -> LatentPrior:
    """With other weights than those that start at zero, which make every prediction zero."""
    for parameter in module.network.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return module
