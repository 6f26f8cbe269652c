"""Numbers that a refactoring must not change: losses of a few steps of every module, quantizers, metrics.

    python -m pytest tests/golden               compares with the committed files
    GOLDEN=write python -m pytest tests/golden  makes them again, after a change that is meant to change numbers,
                                                and with them the code's version in experiments/runtime/code_version.py

Tolerance: relative 1e-4, absolute 1e-6. One machine repeats them to the bit; other CPUs and releases of torch order
their sums in other ways, and the optimizer's eps of 1e-3 keeps Adam from turning that rounding into steps.
"""

import hashlib
import json
import math
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from conftest import TINY_BACKBONES, TINY_DISCRIMINATORS, TOKENIZERS, tiny_experiment
from PIL import Image
from torch import Tensor

from datamodules import ImageFolderConfig, ImageFolderDataModule, ShapesConfig, ShapesDataModule
from datamodules.shapes import render
from experiments.config.compose import parse
from experiments.config.experiment import MODULES
from experiments.pipeline.training import train
from experiments.runtime import code_version
from lightning_modules.base import Setting
from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.losses import (
    LossConfig,
    hinge_d_loss,
    l1_loss,
    l2_loss,
    logit_laplace_loss,
    non_saturating_d_loss,
)
from lightning_modules.losses.tokens import token_loss
from lightning_modules.metrics.codebook import BatchUsage, CodebookUsage
from lightning_modules.metrics.extractors import JUDGE, build_extractor, to_uint8
from lightning_modules.metrics.fidelity import RealImages, fidelity_values
from lightning_modules.metrics.reconstruction import ReconstructionMetrics
from lightning_modules.networks.gpt import GPTConfig
from lightning_modules.networks.sampling import SamplingConfig, generate
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.probe_features import BlockFeatures
from lightning_modules.quantizers import QUANTIZERS, EMAQuantizer, LargeCodebook
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM, VIMConfig

FOLDER = Path(__file__).parent
RTOL, ATOL = 1e-4, 1e-6
STEPS = 4
Numbers = dict[str, Any]


class Losses(L.Callback):
    """All that is logged under loss/, step by step."""

    def __init__(self) -> None:
        self.found: dict[str, list[float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        for name, value in trainer.logged_metrics.items():
            if name.startswith("loss/"):
                self.found.setdefault(name, []).append(float(value))


def fit(module: L.LightningModule, batches: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    losses = Losses()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            accelerator="cpu", max_steps=STEPS, logger=False, log_every_n_steps=1, callbacks=[losses], **quiet
        )
        trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return losses.found


def images(number: int, size: int) -> list[dict[str, Tensor]]:
    data = ShapesDataModule(ShapesConfig(image_size=size, batch_size=4, train_size=4 * number, val_size=10), "")
    data.setup("fit")
    return [*data.train_dataloader()]


def tokenizer(name: str) -> Tokenizer:
    is_vit = name == "vit_vqgan"
    model: dict[str, Any] = {
        "name": name,
        "codebook_size": 32,
        "code_dim": 8,
        "backbone": TINY_BACKBONES["vit" if is_vit else "cnn"],
        "discriminator": TINY_DISCRIMINATORS["vit_vqgan" if is_vit else "vqgan"],
        "loss": asdict(LossConfig(l1=0.5, l2=1.0, adversarial=0.1, discriminator_start=1, adversarial_start=2)),
        "optimizer": asdict(OptimizerConfig(lr=1e-3, eps=1e-3)),
        "metrics": {"extractor": "efficientnet-lite0", "extractor_image_size": 32, "lpips": "none"},
    }
    model["loss"] |= {"perceptual": 0.1, "perceptual_network": "efficientnet-lite0"}
    model["loss"] |= {"r1": 1.0 if is_vit else 0.0, "r1_every": 2}
    if is_vit:
        model["loss"] |= {"logit_laplace": 0.1, "adversarial_loss": "non_saturating"}
    if name == "vqgan_lc":
        model["quantizer"] = {"feature_dim": 40}
    if name in ("vqgan", "vqgan_fc"):
        model["quantizer"] = {"commitment_weight": 0.25, "codebook_weight": 1.0}
    config = parse({"data": {"image_size": 16}, "model": model}, "golden").model
    torch.manual_seed(0)
    module = MODULES[name][0](config, 16)
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn(32, 40))
    return module


def module_numbers() -> Numbers:
    """Losses of four steps of every module on rendered shapes, and what the trained VIM samples."""
    numbers: Numbers = {name: fit(tokenizer(name), images(STEPS, 16)) for name in TOKENIZERS}
    torch.manual_seed(0)
    gpt = GPTConfig(dims=[2, 2, 16, 32])
    optimizer = OptimizerConfig(lr=1e-3, min_lr=1e-5, betas=[0.9, 0.96], eps=1e-3, decay="exponential")
    vim = VIM(VIMConfig(gpt=gpt, optimizer=optimizer), Setting(16, 10, 32, (4, 4)))
    batches = [{"tokens": torch.randint(32, (4, 16)), "label": torch.arange(4)} for _ in range(STEPS)]
    numbers["vim"] = fit(vim, batches)
    tokens = generate(vim.gpt.eval(), [0, 1], torch.tensor([0, 1]), SamplingConfig(top_k=1), 0)
    numbers["vim"]["sampled"] = tokens.flatten().tolist()
    probe = LinearProbe(LinearProbeConfig(), BlockFeatures(vim.gpt, []), 10)
    numbers["linear_probe"] = fit(probe, batches)
    return numbers


QUANTIZER_OPTIONS: dict[str, tuple[dict[str, Any], int]] = {  # name: options, K
    "large_codebook": ({"feature_dim": 10}, 40),
    "fsq": ({"levels": [5, 4, 3, 2]}, 120),
    "lfq": ({}, 16),
    "none": ({}, 0),
}
ADDED_LATER = ("ibq",)  # tests of their own hold their numbers: these are the version of the code in published records


def quantizer_numbers() -> Numbers:
    """Two training batches and one of evaluation: indices, losses, and how far the latents and codes are moved."""
    numbers: Numbers = {}
    kinds = {
        name: (*kind, *QUANTIZER_OPTIONS.get(name, ({}, 40)))
        for name, kind in QUANTIZERS.items()
        if name not in ADDED_LATER
    }
    kinds["ema_placed"] = (*QUANTIZERS["ema"], {"init": "latents", "dead_code_threshold": 0.5}, 40)
    for name, (cls, config, options, size) in kinds.items():
        torch.manual_seed(0)
        quantizer = cls(config(**options), size, 4)
        if isinstance(quantizer, LargeCodebook):
            quantizer.fill(torch.randn(size, 10))
        outputs = [quantizer.train(mode)(torch.randn(30, 4)) for mode in (True, True, False)]
        numbers[name] = {
            "indices": outputs[-1].indices.tolist(),
            "loss": [float(output.loss.detach()) for output in outputs],
            "squares": [float(output.quantized.detach().square().sum()) for output in outputs],
            "codebook": float(quantizer.codebook().detach().square().sum()),
        }
        if isinstance(quantizer, EMAQuantizer):
            numbers[name]["counts"] = quantizer.counts.tolist()
    return numbers


def metric_numbers() -> Numbers:
    """Metrics and losses of fixed random numbers."""
    torch.manual_seed(0)
    real, fake, logits = torch.randn(60, 6), 0.7 * torch.randn(50, 6) + 0.2, torch.randn(50, 5)
    numbers: Numbers = {"fidelity": fidelity_values(RealImages.of([real]), fake, logits, kid=True, prc=True)}
    usage, batch_usage, indices = CodebookUsage(64), BatchUsage(64, batch_tokens=80), torch.randint(48, (17, 4, 4))
    usage.update(indices)
    batch_usage.update(indices)
    numbers["usage"] = {name: float(value) for name, value in usage.compute().items()}
    numbers["usage"]["batch"] = float(batch_usage.compute()["usage"])
    image = torch.rand(4, 3, 32, 32) * 2 - 1
    noisy = (image + 0.2 * torch.randn_like(image)).clamp(-1, 1)
    pooled, logits_of_judge = build_extractor(JUDGE, 32)(to_uint8(image))  # (4, D), (4, C)
    numbers["judge"] = {"pooled": pooled.square().mean(1).tolist(), "logits": logits_of_judge.square().mean(1).tolist()}
    metric = ReconstructionMetrics(32, lpips="none")
    metric.update(noisy, image)
    numbers["reconstruction"] = {name: float(value) for name, value in metric.compute().items()}
    hidden, weight, targets = torch.randn(12, 8), torch.randn(30, 8), torch.randint(30, (12,))
    losses = {
        "l1": l1_loss(noisy, image),
        "l2": l2_loss(noisy, image),
        "logit_laplace": logit_laplace_loss(torch.cat([noisy, image], 1), image),
        "hinge": hinge_d_loss(logits, logits.flip(0) - 0.3),
        "non_saturating": non_saturating_d_loss(logits, logits.flip(0) - 0.3),
        "token": token_loss(hidden, weight, targets).mean,
    }
    return numbers | {"losses": {name: float(value) for name, value in losses.items()}}


def batch_numbers(loader: Any) -> Numbers:
    """Of the first batch: labels, and of each image its mean, mean square and a row of pixels."""
    batch = next(iter(loader))
    image = batch["image"]  # (B, 3, H, W)
    return {
        "label": batch["label"].tolist(),
        "mean": image.mean((1, 2, 3)).tolist(),
        "square": image.square().mean((1, 2, 3)).tolist(),
        "row": image[:, 0, 5].flatten().tolist(),
    }


def data_numbers() -> Numbers:
    """Batches of rendered shapes and of image files, cropped and flipped in training; what files are known by."""
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(16):
            path = Path(folder) / ("train", "val")[number % 2] / f"class{number % 4 // 2}" / f"{number:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = render(np.array([number]), "train", 40 + number % 5, 0)[0].permute(1, 2, 0).numpy()
            Image.fromarray(pixels[: 30 + number % 7]).save(path)
        options: dict[str, Any] = {"image_size": 16, "batch_size": 4, "val_batch_size": 4, "flip": True}
        for data in (
            ShapesDataModule(ShapesConfig(train_size=20, val_size=10, **options), ""),
            ImageFolderDataModule(ImageFolderConfig(train_size=6, **options), folder),
        ):
            data.prepare_data()
            data.setup("fit")
            torch.manual_seed(0)
            numbers[data.config.name] = {
                "train": batch_numbers(data.train_dataloader()),
                "val": batch_numbers(data.val_dataloader()),
            }
    return numbers


def record_numbers() -> Numbers:
    """Of the record of a small run, from the images to the metrics, and their protocols."""
    with tempfile.TemporaryDirectory() as folder:
        keys = ["model.loss.l1=0.5", "model.optimizer.eps=1e-3", "trainer.max_steps=4", "data.flip=true"]
        experiment = tiny_experiment(Path(folder), "vqgan", *keys)
        record = train(experiment, "golden", Path(folder) / "run")
    features = re.compile("rfid|ris")  # of too few images: these follow the rounding
    metrics = {name: value for name, value in record["metrics"].items() if not features.match(name)}
    numbers = {key: record[key] for key in ("history", "protocols", "parameters")} | {"metrics": metrics}
    for of_metrics in (numbers["metrics"], numbers["protocols"]):
        del of_metrics["effective_rank/val"]  # came later, and changes none of the others
    return numbers


PARTS: dict[str, Callable[[], Numbers]] = {
    "modules": module_numbers,
    "quantizers": quantizer_numbers,
    "metrics": metric_numbers,
    "data": data_numbers,
    "record": record_numbers,
}


def flatten(numbers: Any, path: str = "") -> dict[str, float | str]:
    items = numbers.items() if isinstance(numbers, dict) else enumerate(numbers)
    flat: dict[str, float | str] = {}
    for key, value in items:
        flat |= flatten(value, f"{path}/{key}") if isinstance(value, dict | list) else {f"{path}/{key}": value}
    return flat


def differences(part: str, found: Numbers) -> list[str]:
    """One line for each number that is not what the committed file says."""
    expected, flat = flatten(json.loads((FOLDER / f"{part}.json").read_text())), flatten(found)
    lines = [f"{part}{key}: only on one side" for key in expected.keys() ^ flat.keys()]
    return lines + [
        f"{part}{key}: {flat[key]!r} instead of {value!r}"
        for key, value in expected.items()
        if key in flat and not is_close(flat[key], value)
    ]


def is_close(value: Any, expected: Any) -> bool:
    if isinstance(value, str) or isinstance(expected, str):
        return value == expected
    return math.isclose(value, expected, rel_tol=RTOL, abs_tol=ATOL)


def write(part: str, numbers: Numbers) -> None:
    (FOLDER / f"{part}.json").write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")
    path = Path(code_version.__file__)
    path.write_text(re.sub('^CODE = ".*"$', f'CODE = "{version()}"', path.read_text(), flags=re.MULTILINE))


def version() -> str:
    """The digest of the golden files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(FOLDER.glob("*.json")))).hexdigest()[:12]
