"""The tiled search against a dense one in float64."""

import pytest
import torch
from conftest import LargestResult
from torch import Tensor

from lightning_modules.quantizers.search import nearest_code, tiled


def squared_distance(z: Tensor, codebook: Tensor, indices: Tensor) -> Tensor:
    return (z.double() - codebook.double()[indices]).square().sum(1)


def check(z: Tensor, codebook: Tensor) -> Tensor:
    """Each chosen code is as near as the nearest of a dense float64 search, to 1e-5."""
    indices = nearest_code(z, codebook)
    assert indices.shape == (len(z),) and indices.dtype == torch.int64
    smallest = torch.cdist(z.double(), codebook.double()).square().amin(1)
    torch.testing.assert_close(squared_distance(z, codebook, indices), smallest, rtol=1e-5, atol=1e-5)
    return indices


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles so small that tests of a few hundred tokens and codes have many, and a ragged last one."""
    monkeypatch.setattr(tiled, "CPU_TOKENS", 16)
    monkeypatch.setattr(tiled, "CPU_CODES", 32)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("num_tokens", [1, 33, 200])
@pytest.mark.parametrize("num_codes", [1, 32, 33, 300])
@pytest.mark.parametrize("dim", [1, 8, 256])
def test_equals_dense_search(num_tokens: int, num_codes: int, dim: int) -> None:
    torch.manual_seed(num_tokens * num_codes + dim)
    check(torch.randn(num_tokens, dim), torch.randn(num_codes, dim))


@pytest.mark.parametrize(("num_tokens", "num_codes", "dim"), [(1100, 1300, 8), (300, 5000, 32), (50, 512, 32)])
def test_equals_dense_search_with_the_real_tiles(num_tokens: int, num_codes: int, dim: int) -> None:
    torch.manual_seed(0)
    check(torch.randn(num_tokens, dim), torch.randn(num_codes, dim))


@pytest.mark.usefixtures("small_tiles")
def test_codes_of_very_different_norm() -> None:
    """The half norm decides here: without it the longest code would win everywhere."""
    torch.manual_seed(0)
    codebook = torch.randn(500, 8) * torch.logspace(-2, 1, 500)[:, None]
    assert len(check(torch.randn(400, 8), codebook).unique()) > 20


@pytest.mark.usefixtures("small_tiles")
def test_every_code_finds_itself() -> None:
    torch.manual_seed(0)
    codebook = torch.nn.functional.normalize(torch.randn(333, 16))
    assert torch.equal(nearest_code(codebook, codebook), torch.arange(333))


@pytest.mark.usefixtures("small_tiles")
def test_all_tokens_in_one_tile() -> None:
    """A collapsed codebook: one group of all tokens in pass 2."""
    codebook = torch.cat([torch.full((99, 4), 100.0), torch.zeros(1, 4), torch.full((50, 4), 100.0)])
    torch.manual_seed(0)
    assert (nearest_code(torch.randn(321, 4), codebook) == 99).all()


@pytest.mark.usefixtures("small_tiles")
def test_the_lowest_of_equal_codes_wins() -> None:
    codebook = torch.ones(200, 2)
    codebook[40::50] = 0.0  # 40, 90, 140, 190: in tiles 1, 2, 4 and 5
    assert (nearest_code(torch.zeros(7, 2), codebook) == 40).all()


def test_float32_under_autocast_and_reduced_precision_products() -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(200, 32), torch.randn(3000, 32)
    expected = nearest_code(z, codebook)
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    try:
        matmul.fp32_precision = "bf16"
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(nearest_code(z, codebook), expected)
        assert matmul.fp32_precision == "bf16"  # restored
    finally:
        matmul.fp32_precision = before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(torch.randn(40, 8, dtype=dtype), torch.randn(700, 8, dtype=dtype))


def test_strided_arguments_that_need_gradients() -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(8, 60, requires_grad=True).T, torch.randn(900, 16, requires_grad=True)[:, ::2]
    indices = nearest_code(z, codebook)
    assert not indices.requires_grad
    assert torch.equal(indices, check(z.detach().contiguous(), codebook.detach().contiguous()))


def test_no_tokens() -> None:
    assert nearest_code(torch.empty(0, 8), torch.randn(20, 8)).shape == (0,)


@pytest.mark.parametrize(
    ("z_shape", "codebook_shape", "message"),
    [((4, 8), (5, 7), "same d"), ((2, 4, 8), (5, 8), "flatten"), ((4, 8), (0, 8), "empty codebook")],
)
def test_bad_shapes_are_named(z_shape: tuple[int, ...], codebook_shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest_code(torch.zeros(z_shape), torch.zeros(codebook_shape))


def test_the_full_matrix_is_never_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """No result of any operation has more elements than the inputs or one batch of tiles."""
    torch.manual_seed(0)
    monkeypatch.setattr(tiled, "CPU_TOKENS", 64)
    monkeypatch.setattr(tiled, "CPU_CODES", 64)
    z, codebook = torch.randn(2000, 4), torch.randn(3000, 4)
    with LargestResult() as largest:
        nearest_code(z, codebook)
    assert largest.numel <= max(codebook.numel(), 2000 * 5 + 64 * 5, torch.get_num_threads() * 64 * 64)
