"""The search that skips codes against a dense one in float64: it may skip, but never miss."""

import pytest
import torch
from conftest import LargestResult
from torch import Tensor

from lightning_modules.quantizers import search as package
from lightning_modules.quantizers.search import cells, nearest_code
from lightning_modules.quantizers.search.cells import Cells, Partition, part, search_cells


@pytest.fixture(autouse=True)
def small_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "CODES_A_CELL", 20)
    monkeypatch.setattr(cells, "MAX_SHARE", 1.0)
    monkeypatch.setattr(cells, "TOKENS", 150)
    monkeypatch.setattr(cells, "TILE", 2**10)


def search(z: Tensor, codebook: Tensor, partition: Partition | None = None) -> Tensor:
    indices = search_cells(z, codebook, partition or Partition())
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


def test_equal_codes_of_several_cells() -> None:
    """All codes equal: the tree parts them all the same, and no score matrix is larger than a tile."""
    z, codebook = torch.randn(400, 3), torch.ones(5000, 3)
    with LargestResult() as largest:
        assert (search(z, codebook) == 0).all()
    assert largest.numel <= 256 * 150, "the bounds of 256 cells; the matrix has 2,000,000"
    half = torch.cat([torch.full((700, 3), 9.0), torch.randn(300, 3).repeat(5, 1)])
    assert (search(torch.randn(200, 3), half) < 1000).all()


def test_a_tree_is_kept_while_codes_move_and_made_anew_when_it_no_longer_fits() -> None:
    torch.manual_seed(0)
    partition, codebook, z = Partition(), torch.randn(3000, 4), torch.randn(200, 4)
    search(z, codebook, partition)
    order = partition.order
    for _ in range(3):
        codebook = codebook + 0.01 * torch.randn(3000, 4)
        assert torch.equal(search(z, codebook, partition), search(z, codebook)) and partition.order is order
    codebook = codebook[torch.randperm(3000)]
    for _ in range(2):
        assert torch.equal(search(z, codebook, partition), search(z, codebook))
    assert partition.order is not order
    check(z, codebook[:1000])
    assert search(z, codebook[:1000], partition).max() < 1000


def test_a_token_that_is_not_a_number_gets_code_0() -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(30, 4), torch.randn(1000, 4)
    expected, z[7, 1] = search(z, codebook), float("nan")
    expected[7] = 0
    assert torch.equal(search(z, codebook), expected)


def test_most_codes_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    codebook = torch.randn(10_000, 4)
    indices, share = Cells(codebook, part(codebook)).search(torch.randn(100, 4))
    assert indices is not None and share < 0.15


def test_it_declines_where_nothing_can_be_skipped_and_does_not_try_at_once_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cells, "MAX_SHARE", 0.5)
    torch.manual_seed(0)
    z, codebook, partition = torch.randn(300, 16), torch.randn(2000, 16), Partition()
    assert search_cells(z, codebook, partition) is None
    monkeypatch.setattr(cells, "Cells", lambda *_: pytest.fail("it tried"))
    assert search_cells(z, codebook, partition) is None


def test_nearest_code_uses_it_for_large_searches_of_few_dimensions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(100, 4), torch.randn(1000, 4)
    plain = nearest_code(z, codebook)
    monkeypatch.setattr(cells, "MIN_PAIRS", 100 * 1000)
    monkeypatch.setattr(package, "search_tiled", lambda *_: pytest.fail("it compared all pairs"))
    assert torch.equal(nearest_code(z, codebook), plain)
