"""What holds for any images and codes: bounds, and numbers that depend on neither order nor batches."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.metrics.codebook import BatchUsage, CodebookUsage
from lightning_modules.metrics.fidelity import Fidelity, RealImages, fidelity_values
from lightning_modules.metrics.reconstruction import ReconstructionMetrics

repeatable = settings(derandomize=True, deadline=None, max_examples=25, database=None)
SEEDS = st.integers(0, 2**32)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batches(values: Tensor, cuts: list[int]) -> list[Tensor]:
    """The rows in order, cut at these places; empty batches are left out."""
    edges = [0, *sorted(cut % (len(values) + 1) for cut in cuts), len(values)]
    return [values[start:end] for start, end in itertools.pairwise(edges) if end > start]


@given(st.integers(1, 50), st.integers(1, 40), st.lists(st.integers(0, 100), max_size=4), SEEDS)
@repeatable
def test_usage_and_perplexity(codebook_size: int, num_images: int, cuts: list[int], seed: int) -> None:
    rng = generator(seed)
    used = int(torch.randint(1, codebook_size + 1, (), generator=rng))
    indices = torch.randint(used, (num_images, 2, 3), generator=rng)
    whole, parts = CodebookUsage(codebook_size), CodebookUsage(codebook_size)
    whole.update(indices)
    order = torch.randperm(num_images, generator=rng)
    for batch in batches(indices[order], cuts):
        parts.update(batch)
    values = whole.compute()
    assert all(torch.equal(value, values[name]) for name, value in parts.compute().items())
    num_used = len(indices.unique())
    assert float(values["usage"]) == pytest.approx(100 * num_used / codebook_size)
    assert 1 - 1e-5 <= float(values["perplexity"]) <= num_used * (1 + 1e-5)
    assert int(values["dead_codes"]) == codebook_size - num_used
    assert int(parts.counts.sum()) == indices.numel()


@given(st.integers(1, 30), st.integers(1, 60), st.integers(1, 9), st.lists(st.integers(0, 100), max_size=4), SEEDS)
@repeatable
def test_usage_of_a_batch_does_not_depend_on_the_loaders(
    codebook_size: int, num_images: int, group: int, cuts: list[int], seed: int
) -> None:
    indices = torch.randint(codebook_size, (num_images, 4), generator=generator(seed))
    metric = BatchUsage(codebook_size, batch_tokens=4 * group)
    for batch in batches(indices, cuts):
        metric.update(batch)
    groups = [part for part in indices.split(group) if len(part) == group] or [indices]
    expected = sum(len(part.unique()) for part in groups) / len(groups)
    assert float(metric.compute()["usage"]) == pytest.approx(100 * expected / codebook_size, rel=1e-5)


class Linear(torch.nn.Module):
    """An extractor that is quick: a fixed linear map of the pixels."""

    id = "linear"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().flatten(1) / 255  # (B, D)
        weight = torch.linspace(-1, 1, pixels.shape[1] * 9).view(pixels.shape[1], 9).sin()
        return pixels @ weight[:, :5], pixels @ weight[:, 5:]


def fidelity() -> Fidelity:
    metric = Fidelity.__new__(Fidelity)
    super(Fidelity, metric).__init__()
    metric.extractor, metric.kid, metric.prc, metric._given_real = Linear(), False, False, None
    for name in ("real", "fake", "fake_logits"):
        metric.add_state(name, [], dist_reduce_fx="cat")
    return metric


@given(st.integers(12, 40), st.integers(12, 40), st.lists(st.integers(0, 100), max_size=4), SEEDS)
@repeatable
def test_fid_and_is_streamed_equal_all_at_once(num_real: int, num_fake: int, cuts: list[int], seed: int) -> None:
    rng = generator(seed)
    real = torch.rand(num_real, 3, 4, 4, generator=rng) * 2 - 1
    fake = torch.rand(num_fake, 3, 4, 4, generator=rng) ** 2 * 2 - 1
    metric = fidelity()
    for batch in batches(real, cuts):
        metric.update(batch, real=True)
    for batch in batches(fake, cuts[::-1]):
        metric.update(batch, real=False)
    values = {name: float(value) for name, value in metric.compute().items()}
    (a, _), (b, logits) = metric.extract(real), metric.extract(fake)
    assert values == pytest.approx(fidelity_values(RealImages.of([a]), b, logits), rel=1e-4, abs=1e-6)
    assert values["fid"] >= -1e-6 and 1 - 1e-6 <= values["isc_mean"] <= logits.shape[1] and values["isc_std"] >= 0
    mixed = fidelity_values(RealImages.of([a.flip(0)]), b, logits)
    assert mixed["fid"] == pytest.approx(values["fid"], rel=1e-4, abs=1e-6), "the order of images means nothing"
    assert fidelity_values(RealImages.of([b]), a, logits)["fid"] == pytest.approx(values["fid"], rel=1e-3, abs=1e-5), (
        "symmetric"
    )
    assert fidelity_values(RealImages.of([a]), a, logits)["fid"] == pytest.approx(0, abs=1e-5)


@given(st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0]), st.lists(st.integers(0, 100), max_size=3), SEEDS)
@repeatable
def test_bounds_of_psnr_and_ssim(noise: float, cuts: list[int], seed: int) -> None:
    rng = generator(seed)
    image = torch.rand(5, 3, 16, 16, generator=rng) * 2 - 1
    reconstruction = image + noise * torch.randn(image.shape, generator=rng)
    whole, parts = (ReconstructionMetrics(16, lpips="none", feature_distance=False) for _ in range(2))
    whole.update(reconstruction, image)
    for x, y in zip(batches(reconstruction, cuts), batches(image, cuts), strict=True):
        parts.update(x, y)
    values = {name: float(value) for name, value in whole.compute().items()}
    assert {name: float(value) for name, value in parts.compute().items()} == pytest.approx(values, rel=1e-4, abs=1e-6)
    assert -1 <= values["ssim"] <= 1 + 1e-6 and 0 <= values["l1"] <= 1 and 0 <= values["l2"] <= values["l1"] + 1e-6
    if noise == 0:
        assert values["psnr"] == math.inf and values["ssim"] == pytest.approx(1) and values["l1"] == 0
        return
    assert 0 <= values["psnr"] < 100
    assert values["psnr"] >= -10 * math.log10(values["l2"]) - 1e-3, "Jensen: the mean of logs, not the log of the mean"
    swapped = ReconstructionMetrics(16, lpips="none", feature_distance=False)
    swapped.update(image, reconstruction)
    assert {n: float(v) for n, v in swapped.compute().items()} == pytest.approx(values, rel=1e-4, abs=1e-6)
