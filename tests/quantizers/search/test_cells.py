"""The search that skips codes against a dense one in float64: it may skip, but never miss."""

import pytest
import torch
from conftest import LargestResult
from torch import Tensor

from lightning_modules.quantizers import search as package
from lightning_modules.quantizers.search import cells, nearest_code
from lightning_modules.quantizers.search.cells import Cells, search_cells


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CODES_A_CELL", 20)
    monkeypatch.setattr(cells, "MAX_SHARE", 1.0)
    monkeypatch.setattr(cells, "TOKENS", 150)


def search(z: Tensor, codebook: Tensor) -> Tensor:
    indices = search_cells(z, codebook, tile_tokens=16, tile_codes=32)
    assert indices is not None and indices.dtype == torch.int64
    return indices


def check(z: Tensor, codebook: Tensor) -> None:
    chosen = (z.double() - codebook.double()[search(z, codebook)]).square().sum(1)
    smallest = torch.cdist(z.double(), codebook.double()).square().amin(1)
    torch.testing.assert_close(chosen, smallest, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 33, 400])
@pytest.mark.parametrize("num_codes", [1, 33, 3000])
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_equals_dense_search(num_tokens: int, num_codes: int, dim: int) -> None:
    torch.manual_seed(num_tokens * num_codes + dim)
    check(torch.randn(num_tokens, dim), torch.randn(num_codes, dim))


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_codes_much_narrower_or_wider_than_the_tokens(scale: float) -> None:
    """Collapsed or exploded codebooks: bounds and distances differ by orders of magnitude."""
    torch.manual_seed(0)
    check(torch.randn(300, 4), scale * torch.randn(2000, 4))


def test_codes_on_a_sphere_and_tokens_among_them() -> None:
    torch.manual_seed(0)
    codebook = torch.nn.functional.normalize(torch.randn(2000, 6))
    assert torch.equal(search(codebook, codebook), torch.arange(2000))


def test_half_of_the_codes_are_one_point_and_some_cells_are_empty() -> None:
    torch.manual_seed(0)
    codebook = torch.cat([torch.zeros(1000, 4), torch.randn(1000, 4).abs()])
    check(torch.randn(300, 4), codebook)
    assert (search(torch.zeros(7, 4), codebook) == 0).all(), "of equal codes the lowest index"


def test_a_cell_of_all_codes_is_searched_in_small_tiles() -> None:
    """All codes equal: one cell, and no score matrix larger than a tile may be built for it."""
    z, codebook = torch.randn(400, 3), torch.ones(5000, 3)
    with LargestResult() as largest:
        assert (search(z, codebook) == 0).all()
    assert largest.numel <= 256 * 150, "the bounds of 256 cells; the matrix has 2,000,000"


def test_most_codes_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = 0
    minimum = Cells.minimum

    def counted(self: Cells, tokens: Tensor, codes: Tensor) -> Tensor:
        nonlocal pairs
        pairs += len(tokens) * len(codes)
        return minimum(self, tokens, codes)

    monkeypatch.setattr(Cells, "minimum", counted)
    torch.manual_seed(0)
    search(torch.randn(300, 4), torch.randn(10_000, 4))
    assert pairs < 0.15 * 300 * 10_000


def test_it_declines_where_nothing_can_be_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_SHARE", 0.5)
    torch.manual_seed(0)
    z, codebook = torch.randn(300, 16), torch.randn(2000, 16)
    assert search_cells(z, codebook, 16, 32) is None


def test_nearest_code_uses_it_for_large_searches_of_few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(100, 4), torch.randn(1000, 4)
    plain = nearest_code(z, codebook)
    monkeypatch.setattr(cells, "MIN_PAIRS", 100 * 1000)
    monkeypatch.setattr(package, "search_tiled", lambda *_: pytest.fail("it compared all pairs"))
    assert torch.equal(nearest_code(z, codebook), plain)
