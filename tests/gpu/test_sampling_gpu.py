"""Sampling with its cache on a GPU gives what whole sequences give."""

import pytest
import torch
from gpu_runs import DEVICE

from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import SamplingConfig, generate


@pytest.fixture(scope="module")
def model() -> GPT:
    """Float32 without TF32, of logits far enough apart for rounding not to decide."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(dims=[2, 2, 64, 128], dropout=0.5), 500, (4, 4), 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(DEVICE)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_cache_changes_no_image(model: GPT, scale: float) -> None:
    labels = torch.arange(64, device=DEVICE) % 10
    sampled = generate(model, range(64), labels, SamplingConfig(top_k=1, guidance_scale=scale))
    model.eval()
    with torch.inference_mode():
        with_label, without = (model.logits(model(sampled[:, :-1], kind)).float() for kind in (labels, None))
    logits = without + scale * (with_label - without) if scale != 1 else with_label
    assert sampled.device.type == DEVICE.type and len(sampled.unique(dim=0)) > 1
    assert (logits.argmax(2) == sampled).float().mean() > 0.995  # two logits may be equal but for rounding


def test_an_image_does_not_depend_on_its_batch(model: GPT) -> None:
    together = generate(model, range(20), seed=5)
    parts = torch.cat([generate(model, range(first, first + 10), seed=5) for first in (0, 10)])
    assert (together == parts).all(1).float().mean() >= 0.9
    assert not torch.equal(together, generate(model, range(20), seed=6))
