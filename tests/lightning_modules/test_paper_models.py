"""The configurations' defaults are the papers' models: losses and weights, optimizer, schedule, batch and length."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from experiments.config.compose import parse
from experiments.config.experiment import MODULES
from lightning_modules import prior, tokenizer
from lightning_modules.base import Setting
from lightning_modules.losses import pixels
from lightning_modules.networks import PatchGAN, StyleGANDiscriminator
from lightning_modules.optimizer import OptimizerConfig, build_schedule
from lightning_modules.tokenizer import Tokenizer, TokenizerOutput
from lightning_modules.tokenizer_losses import generator_terms
from lightning_modules.vim import VIM, VIMConfig
from lightning_modules.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from lightning_modules.vqgan_lc import VQGANLC, VQGANLCConfig

B_MODELS = ["vqgan", "vqgan_ema", "vqgan_fc", "vqgan_lc"]


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stubs for the networks whose weights a machine may lack; the names of the perceptual ones that are asked for."""
    names: list[str] = []

    def build_perceptual(name: str, image_size: int) -> nn.Module:
        names.append(name)
        return nn.Identity()

    monkeypatch.setattr(tokenizer, "build_perceptual", build_perceptual)
    monkeypatch.setattr(tokenizer, "TokenizerMetrics", lambda *_: nn.Identity())
    monkeypatch.setattr(prior, "GenerationMetrics", lambda *_: nn.Identity())
    return names


def on_meta(build: Callable[[], Any]) -> Any:
    with torch.device("meta"):
        return build()


def total_loss(module: Tokenizer, monkeypatch: pytest.MonkeyPatch, step: int, **terms: float) -> float:
    """The generator's loss at `step` when each term has the value that `terms` gives it (0 if none)."""

    def value(name: str) -> Callable[..., torch.Tensor]:
        return lambda *_: torch.tensor(terms.get(name, 0.0))

    for name in ("l1", "l2", "logit_laplace"):
        monkeypatch.setattr(pixels, f"{name}_loss", value(name))
    monkeypatch.setattr(module, "adversarial_loss", value("adversarial"))
    module.discriminator = nn.Identity()
    module.perceptual = nn.Module()
    module.perceptual.forward = value("perceptual")  # type: ignore[method-assign]
    module.step = step
    image = torch.zeros(1, 3, 8, 8)
    output = TokenizerOutput(image, image, torch.zeros(1, 1, 1), torch.tensor(terms.get("quantizer", 0.0)))
    plays, weighs = module.game()
    module.balance.fill_(7.0 if weighs else 1.0)
    return float(generator_terms(module, image, output, plays, False)["generator"])


def weights(module: Tokenizer, monkeypatch: pytest.MonkeyPatch, step: int) -> dict[str, float]:
    names = ("l1", "l2", "logit_laplace", "perceptual", "quantizer", "adversarial")
    return {name: round(total_loss(module, monkeypatch, step, **{name: 1.0}), 6) for name in names}


def rates(config: OptimizerConfig, max_steps: int, *steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    (factor,) = build_schedule(optimizer, config, max_steps).lr_lambdas
    return [config.lr * factor(step) for step in steps]


def test_paper_a(monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]) -> None:
    """A 3.3: L_VQ + 0.1 L_adversarial + 0.1 L_perceptual + 0.1 L_logit-Laplace + 1.0 L_2, from the first step on."""
    module = on_meta(lambda: ViTVQGAN(ViTVQGANConfig(), image_size=256))
    assert module.encoder(torch.zeros(1, 3, 256, 256, device="meta")).shape == (1, 32, 32, 768)
    assert (len(module.encoder.transformer.blocks), len(module.decoder.transformer.blocks)) == (12, 12)
    assert module.quantizer.codebook().shape == (8192, 32)
    assert isinstance(module.discriminator, StyleGANDiscriminator) and no_downloads == ["lpips-vgg"]
    quantizer, loss, optimizer = module.config.quantizer, module.config.loss, module.config.optimizer
    assert (quantizer.commitment_weight, quantizer.codebook_weight, quantizer.l2_norm) == (0.25, 1.0, True)
    assert (loss.adversarial_loss, loss.adaptive_weight, loss.r1, loss.r1_every) == ("non_saturating", False, 10, 16)
    assert weights(module, monkeypatch, step=0) == {
        "l1": 0.0,
        "l2": 0.25,  # 1 of pixels in [0, 1]
        "logit_laplace": 0.1,
        "perceptual": 0.1,
        "quantizer": 1.0,
        "adversarial": 0.1,
    }
    assert (optimizer.name, optimizer.betas, optimizer.weight_decay) == ("adamw", [0.9, 0.99], 1e-4)
    assert rates(optimizer, ViTVQGANConfig.max_steps, 0, 49_999, 50_000, 275_000, 500_000) == pytest.approx(
        [2e-9, 1e-4, 1e-4, 7.5e-5, 5e-5]
    )


@pytest.mark.parametrize("name", B_MODELS)
def test_paper_b(name: str, monkeypatch: pytest.MonkeyPatch, no_downloads: list[str]) -> None:
    """B's code: L1 + LPIPS + 0.1 (1.0 commitment + 0.33 codebook), and from step 50,000 on 0.1 w adversarial."""
    cls, config_class = MODULES[name]
    module = on_meta(lambda: cls(config_class(), image_size=256))
    assert module.encoder.grid_size == 16
    assert isinstance(module.discriminator, PatchGAN) and no_downloads == ["lpips-vgg"]
    quantizer, loss, optimizer = module.config.quantizer, module.config.loss, module.config.optimizer
    codebook_weight = 0.0 if name == "vqgan_ema" else 0.33
    assert (quantizer.commitment_weight, quantizer.codebook_weight) == (1.0, codebook_weight)
    assert (loss.adversarial_loss, loss.discriminator_start, loss.r1) == ("hinge", 50_000, 0)
    before = {"l1": 1.0, "l2": 0.0, "logit_laplace": 0.0, "perceptual": 1.0, "quantizer": 0.1, "adversarial": 0.0}
    assert weights(module, monkeypatch, step=49_999) == before
    assert weights(module, monkeypatch, step=50_000) == before | {"adversarial": 0.7}
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.5, 0.9], 1e-7, 0.0)
    assert rates(optimizer, config_class.max_steps, 25_019, 25_020, 62_550, 100_080) == pytest.approx(
        [5e-4, 5e-4, 2.5e-4, 0], abs=1e-12
    )


def test_the_large_codebook_and_its_baselines() -> None:
    module = on_meta(lambda: VQGANLC(VQGANLCConfig(), image_size=256))
    assert module.quantizer.table.shape == (100_000, 768) and module.config.code_dim == 8
    configs = [MODULES[name][1]() for name in B_MODELS[:3]]
    sizes = [(config.codebook_size, config.code_dim) for config in configs]
    assert sizes == [(16_384, 256), (16_384, 256), (16_384, 8)]


def test_vim() -> None:
    """A 4 and A-Table 2's VIM-Large."""
    module = on_meta(lambda: VIM(VIMConfig(), Setting(256, 1000, 8192, (32, 32))))
    assert (len(module.gpt.blocks), module.gpt.num_tokens, tuple(module.gpt.head.weight.shape)) == (
        36,
        1024,
        (8192, 2048),
    )
    config = VIMConfig()
    assert config.encode_on_the_fly and config.gpt.dropout == 0.1 and config.optimizer.betas == [0.9, 0.96]
    assert rates(config.optimizer, config.max_steps, 0, 5000, 80_000, 265_000, 450_000) == pytest.approx(
        [9e-8, 4.5e-4, 4.5e-4, (4.5e-4 * 1e-5) ** 0.5, 1e-5]
    )


@pytest.mark.parametrize(
    ("name", "batch_size", "max_steps"), [(n, 256, 100_080) for n in B_MODELS] + [("vit_vqgan", 256, 500_000)]
)
def test_a_recipe_that_names_a_model_has_its_papers_batch_and_length(
    name: str, batch_size: int, max_steps: int
) -> None:
    experiment = parse({"model": {"name": name}, "data": {"name": "image_folder"}}, "x")
    assert (experiment.data.batch_size, experiment.trainer.max_steps) == (batch_size, max_steps)
    changed = parse({"model": {"name": name}, "data": {"name": "shapes", "batch_size": 4}}, "x")
    assert (changed.data.batch_size, changed.trainer.max_steps) == (4, max_steps)
