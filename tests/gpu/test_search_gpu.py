"""The search on a GPU against a dense one in float64, by the rule of the search on a CPU."""

import pytest
import torch
from gpu_runs import DEVICE
from torch import Tensor

from lightning_modules.quantizers.search import nearest_code

IS_GPU = DEVICE.type == "cuda"
SIZES = [
    (65_536, 100_000, 8),
    (16_384, 16_384, 8),
    (4_096, 1_024, 256),
    (2_000, 5_000, 768),
    (777, 262_144, 8),
    (1, 1, 1),
]


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE)


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """(n, d), (K, d) -> (n, K) float64, without the rounding of a product of matrices."""
    return torch.cdist(z.double(), codebook.double(), compute_mode="donot_use_mm_for_euclid_dist").square()


@pytest.mark.parametrize(("num_tokens", "num_codes", "dim"), SIZES)
def test_equals_a_dense_search(num_tokens: int, num_codes: int, dim: int) -> None:
    if not IS_GPU:
        num_tokens, num_codes = min(num_tokens, 500), min(num_codes, 3000)
    z, codebook = numbers(num_tokens, dim), numbers(num_codes, dim)
    indices = nearest_code(z, codebook)
    assert indices.shape == (num_tokens,) and indices.dtype == torch.int64
    some = torch.arange(0, num_tokens, max(1, num_tokens // 256), device=DEVICE)  # first and last blocks included
    distances = squared_distances(z[some], codebook)
    found = distances.gather(1, indices[some, None])[:, 0]
    torch.testing.assert_close(found, distances.amin(1), rtol=1e-5, atol=1e-5)


def test_the_lowest_of_equal_codes_wins() -> None:
    """In several blocks of codes, and in several splits of them."""
    codebook = torch.ones(20_000, 8, device=DEVICE)
    codebook[40::500] = 0.0
    assert (nearest_code(torch.zeros(3, 8, device=DEVICE), codebook) == 40).all()
    assert (nearest_code(torch.zeros(9_000, 8, device=DEVICE), codebook) == 40).all()


def test_codes_of_very_different_norm() -> None:
    codebook = numbers(500, 8) * torch.logspace(-2, 1, 500, device=DEVICE)[:, None]
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(500, device=DEVICE))


def test_a_token_that_is_not_a_number_leaves_the_others_alone() -> None:
    z, codebook = numbers(300, 8), numbers(1000, 8)
    expected = nearest_code(z, codebook)
    z[7, 3] = float("nan")
    indices = nearest_code(z, codebook)
    others = torch.arange(300, device=DEVICE) != 7
    assert torch.equal(indices[others], expected[others]) and 0 <= int(indices[7]) < 1000


def test_full_float32_under_autocast_and_tf32() -> None:
    z, codebook = numbers(500, 64), numbers(3000, 64)
    expected = nearest_code(z, codebook)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with torch.autocast(DEVICE.type, torch.bfloat16):
            assert torch.equal(nearest_code(z, codebook), expected)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not IS_GPU, reason="the memory of a GPU")
def test_memory() -> None:
    z, codebook = numbers(65_536, 8), numbers(100_000, 8)
    nearest_code(z, codebook)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nearest_code(z, codebook)
    assert torch.cuda.max_memory_allocated() - before <= 64 * 2**20
