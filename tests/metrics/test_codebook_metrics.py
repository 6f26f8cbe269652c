import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.metrics import BatchUsage, CodebookUsage, codebook


def gathered(mine: Metric, other: Metric) -> Metric:
    """`mine` as rank 0 of two processes: torchmetrics' own sync, which gathers the states of `other`."""
    values = (dim_zero_cat(value) if isinstance(value, list) else value for value in other.metric_state.values())
    states: Iterator[Tensor] = iter(values)
    mine.distributed_available_fn = lambda: True
    mine.dist_sync_fn = lambda state, group=None: [state, next(states)]
    return mine


def test_codebook_usage_by_hand() -> None:
    metric = CodebookUsage(codebook_size=8)
    metric.update(torch.tensor([[[0, 0], [1, 1]]]))
    metric.update(torch.tensor([5, 5, 5, 5]))
    result = metric.compute()
    assert result["usage"].item() == pytest.approx(100 * 3 / 8)
    assert result["perplexity"].item() == pytest.approx(math.exp(0.5 * math.log(4) + 0.5 * math.log(2)))
    assert result["dead_codes"].item() == 5
    assert metric.counts.tolist() == [2, 2, 0, 0, 0, 4, 0, 0]


def test_perplexity_is_one_for_one_code_and_k_for_a_uniform_codebook() -> None:
    metric = CodebookUsage(codebook_size=100_000)
    metric.update(torch.full((3, 4, 4), 99_999))
    assert metric.compute()["perplexity"].item() == pytest.approx(1)
    metric.reset()
    assert metric.counts.sum() == 0
    metric.update(torch.arange(100_000))
    result = metric.compute()
    assert result["perplexity"].item() == pytest.approx(100_000, rel=1e-4)
    assert result["usage"].item() == 100


def test_the_effective_rank_is_that_of_the_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(20, 4, generator=generator) @ torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.0])) + 5
    counts = torch.randint(9, (20,), generator=generator)
    tokens = codes.double().repeat_interleave(counts, 0)
    shares = torch.linalg.svdvals(tokens - tokens.mean(0))
    shares = shares / shares.sum()
    expected = math.exp(-sum(share * math.log(share) for share in shares.tolist() if share > 1e-12))
    rank = codebook.effective_rank(codes, counts).item()
    assert rank == pytest.approx(expected, rel=1e-5)
    assert 2 < rank < 3
    assert rank != pytest.approx(codebook.effective_rank(codes, torch.ones(20)).item(), rel=1e-3)


def test_the_effective_rank_of_even_axes_is_their_number_and_of_one_code_none() -> None:
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    assert codebook.effective_rank(axes, torch.full((6,), 7)).item() == pytest.approx(3)
    assert codebook.effective_rank(axes, torch.tensor([4, 0, 0, 4, 0, 0])).item() == pytest.approx(1)
    assert codebook.effective_rank(axes[:1], torch.tensor([9])).item() == 0


@pytest.mark.parametrize(("code", "metric"), [(8, CodebookUsage(8)), (-1, CodebookUsage(8)), (9, BatchUsage(8))])
def test_a_code_outside_the_codebook_is_named(code: int, metric: Metric) -> None:
    with pytest.raises(ValueError, match=f"Code {code} .* 8 codes"):
        metric.update(torch.tensor([[[0, code]]]))


def test_two_processes_count_as_one() -> None:
    indices = torch.randint(50, (10, 4, 4), generator=torch.Generator().manual_seed(0))
    one, rank0, rank1 = (CodebookUsage(64) for _ in range(3))
    one.update(indices)
    rank0.update(indices[:3])
    rank1.update(indices[3:])
    both = gathered(rank0, rank1)
    assert both.compute() == one.compute()
    assert both.counts.tolist() == one.counts.tolist()  # the histogram is of both ranks too


def naive_batch_usage(indices: Tensor, codebook_size: int, batch_images: int) -> float:
    groups = [group for group in indices.split(batch_images) if len(group) == batch_images] or [indices]
    return sum(100 * len(group.unique()) / codebook_size for group in groups) / len(groups)


@pytest.mark.parametrize("num_images", [5, 16, 50])
@pytest.mark.parametrize("loader_batch", [1, 7, 16, 64])
def test_batch_usage_equals_the_naive_one_for_any_loader(num_images: int, loader_batch: int) -> None:
    indices = torch.randint(300, (num_images, 2, 3), generator=torch.Generator().manual_seed(0))
    metric = BatchUsage(300, batch_tokens=16 * 6)
    for batch in indices.split(loader_batch):
        metric.update(batch)
    assert metric.compute()["usage"].item() == pytest.approx(naive_batch_usage(indices, 300, 16))
    metric.reset()
    metric.update(indices[:2])
    assert metric.compute()["usage"].item() == pytest.approx(100 * len(indices[:2].unique()) / 300)


@pytest.mark.parametrize("num_images", [3 * 16 + 5, 16, 7])
def test_batch_usage_of_two_processes_is_of_the_groups_of_one(monkeypatch: pytest.MonkeyPatch, num_images: int) -> None:
    """Each has every second image, and so a part of every group."""
    indices = torch.randint(300, (num_images, 2, 3), generator=torch.Generator().manual_seed(0))
    one, *ranks = (BatchUsage(300, batch_tokens=16 * 6) for _ in range(3))
    one.update(indices)
    monkeypatch.setattr(codebook, "world_size", lambda: 2)
    for rank, metric in enumerate(ranks):
        monkeypatch.setattr(codebook, "rank", lambda rank=rank: rank)
        for batch in indices[rank::2].split(5):
            metric.update(batch)
    assert gathered(*ranks).compute() == one.compute()
    assert one.compute()["usage"].item() == pytest.approx(naive_batch_usage(indices, 300, 16))


@pytest.mark.parametrize(("num_tokens", "percent"), [(2, 86.4665), (10, 99.9955), (0, 0)])
def test_usage_is_bounded_by_the_tokens_of_a_code(num_tokens: int, percent: float) -> None:
    """By counting: uniform tokens use what is said to be reachable."""
    size = 10_000
    indices = torch.randint(size, (num_tokens * size,), generator=torch.Generator().manual_seed(0))
    metric = CodebookUsage(size)
    metric.update(indices)
    found = metric.compute()
    assert found["reachable"].item() == pytest.approx(percent, abs=1e-3)
    assert found["usage"].item() == pytest.approx(percent, abs=1)


@pytest.mark.parametrize(
    ("num_images", "side", "counted"), [(520, 32, 256 * 1024), (4200, 8, 4096 * 64), (9, 8, 9 * 64)]
)
def test_a_batch_has_the_tokens_of_the_papers(num_images: int, side: int, counted: int) -> None:
    """256 images of 1,024 tokens, or as many of 64 as have equally many; all where there are too few."""
    metric = BatchUsage(2)
    metric.update(torch.zeros(num_images, side, side, dtype=torch.int64))
    found = metric.compute()
    assert metric.tokens_of_group == counted
    assert found["usage"] == 50 and found["reachable"].item() == pytest.approx(100 * -math.expm1(-counted / 2))


def test_an_update_does_not_wait_for_the_device() -> None:
    """On the meta device no value can be read; what is counted on the host has values."""
    indices = torch.zeros(5, 4, 4, dtype=torch.int64, device="meta")
    for metric in CodebookUsage(8).to("meta"), BatchUsage(8, batch_tokens=32).to("meta"):
        for _ in range(3):
            metric.update(indices)
