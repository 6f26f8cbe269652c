"""A training step asks the device for one value a loss: whether all of its terms are finite.

Counted on a CPU: whatever reads a tensor's value there makes the host wait for a GPU.
"""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from vim_cases import build as build_vim
from vim_cases import tiny_vim

from experiments.pipeline.build import build_model
from lightning_modules import tokenizer
from lightning_modules import vim as vim_module
from lightning_modules.metrics import MetricsConfig, TokenizerMetrics
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.tokenizer_losses import critic_terms, generator_terms
from lightning_modules.vim import VIM

READS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.bincount, torch.ops.aten.equal}


class Reads(TorchDispatchMode):
    """Within this context, `count` operations have made the host wait for a value or a size."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += function.overloadpacket in READS
        return function(*args, **(kwargs or {}))


def losses_of(module: Tokenizer, image: Tensor) -> int:
    """Reads of a step's losses and its usage, without optimizers, whose step counters are on the CPU."""
    with Reads() as reads:
        output = module(image)
        module.report(generator_terms(module, image, output, True, True), image)
        module.train_usage.update(output.indices)
        module.report(critic_terms(module, image, output.reconstruction.detach(), True), image)
    return reads.count


PLACED = "init: latents, dead_code_threshold: 0.5"
KINDS = ["vq", "ema", f"ema, {PLACED}", "factorized", "large_codebook", "simvq", "rotation", "ibq"]


@pytest.mark.parametrize("quantizer", KINDS)
def test_one_read_a_loss_of_a_tokenizer(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, quantizer: str) -> None:
    """With every term there is: two losses, two reads; the search for the nearest code is counted on its own."""
    loss = "{l1: 1, l2: 1, perceptual: 0.1, perceptual_network: efficientnet-lite0, adversarial: 0.1, r1: 1}"
    options = ["model.codebook_size=32", f"model.loss={loss}"]
    module = build_model(tiny("vqgan", f"model.quantizer={{name: {quantizer}}}", *options))
    monkeypatch.setattr(tokenizer, "logs_now", lambda _: False)
    monkeypatch.setattr(Tokenizer, "trainer", None)
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(torch.randn_like(module.quantizer.table))
    image = torch.rand(4, 3, 16, 16) * 2 - 1
    module(image)  # the first batch may place the codes
    with Reads() as search, torch.no_grad():
        module.eval()(image)
    assert losses_of(module.train(), image) - search.count == 2


def test_one_read_of_vim(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VIM, "log", lambda *_, **__: None)
    monkeypatch.setattr(vim_module, "share_of_step", lambda *_: 1.0)
    module, _ = build_vim(tiny_vim(tiny, "model.label_dropout=0.1", "model.keep_tokens=0.8"))
    batch: dict[str, Any] = {"tokens": torch.randint(32, (4, 64)), "label": torch.randint(10, (4,))}
    with Reads() as reads:
        module.training_step(batch, 0)
    assert reads.count == 1


def test_no_read_of_a_validation_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics on the meta device, which has no values to read."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which knows no such device
    config = MetricsConfig(extractor="efficientnet-lite2", extractor_image_size=32, code_ranks=[2])
    metrics = TokenizerMetrics(config, 32, 16).to("meta")
    image = torch.zeros(4, 3, 16, 16, device="meta")
    for _ in range(2):
        metrics.update(torch.zeros(4, 8, 8, dtype=torch.int64, device="meta"), image, image, torch.cat([image] * 2, 1))
