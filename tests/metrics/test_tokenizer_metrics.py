from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.metrics import MetricsConfig, TokenizerMetrics
from lightning_modules.metrics import tokenizer as module

SIZE = 16
pytestmark = pytest.mark.usefixtures("shared_encoders")


def measured(codebook_size: int, indices: Tensor, **options: Any) -> TokenizerMetrics:
    config = MetricsConfig(extractor="efficientnet-lite0", extractor_image_size=32, lpips="none", **options)
    metrics = TokenizerMetrics(config, codebook_size, SIZE)
    image = torch.rand(len(indices), 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = metrics.num_wanted(len(image))
    metrics.update(indices, image[:wanted], 0.9 * image[:wanted])
    return metrics


def test_usage_stands_beside_what_is_reachable() -> None:
    metrics = measured(32, torch.arange(6 * 64).view(6, 8, 8) % 20)
    values = metrics.compute()
    assert values["usage/val"] == values["usage/batch"] == 62.5
    assert values["reachable/val"] == values["reachable/batch"] > 99.99
    metrics.reset()
    assert metrics.num_seen == metrics.usage.counts.sum() == 0
    ids = metrics.protocols()  # of the last compute
    assert set(ids) == set(values)
    assert ids["usage/val"] == "usage/once-in-val/n6"
    assert ids["usage/batch"] == "usage/mean-over-batches-of-384-val-tokens/n6"


def test_the_effective_rank_is_of_the_codes_in_use() -> None:
    metrics = measured(32, torch.arange(6 * 64).view(6, 8, 8) % 4)
    codes = torch.zeros(32, 5)
    codes[:4] = torch.tensor([[1.0, 0, 0, 0, 0], [-1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, -1, 0, 0, 0]])
    codes[9, 4] = 100.0  # which no token has
    values = metrics.compute() | metrics.compute_effective_rank(lambda indices: codes[indices])
    assert values["effective_rank/val"] == pytest.approx(2)
    ids = metrics.protocols()
    assert set(ids) == set(values) and ids["effective_rank/val"] == "effective-rank/centred-val-tokens/n6"


def test_without_codes_nothing_is_counted() -> None:
    metrics = measured(0, torch.zeros(6, 8, 8, dtype=torch.int64), num_images=4)
    values = metrics.compute()
    assert set(values) == {"psnr", "ssim", "l1", "l2", "feature_distance", "rfid", "ris", "ris_std"}
    assert metrics.last_counts is None and metrics.compute_effective_rank(lambda indices: indices) == {}
    ids = metrics.protocols()
    assert set(ids) == set(values) and ids["psnr"].endswith("/n4")


def test_ranks_are_of_the_first_images_and_of_the_codes_that_any_image_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RANKED_IMAGES", 4)
    indices = torch.zeros(6, 8, 8, dtype=torch.int64)
    indices[5, 0, 0] = 7
    metrics, asked = measured(32, indices, code_ranks=[1, 2, 3]), []

    def decode_ranks(image: Tensor, ranks: list[int], among: Tensor | None) -> dict[int, Tensor]:
        asked.append((len(image), ranks, None if among is None else among.tolist()))
        return {rank: image * (1 - 0.1**rank) for rank in ranks}

    values = metrics.compute() | metrics.compute_ranks(decode_ranks)
    assert asked == [(4, [1, 2, 3], None), (4, [1, 2], [0, 7])]
    assert (
        values["psnr/rank2"] == values["psnr/used_rank2"] == pytest.approx(float(values["psnr/rank1"]) + 20, abs=1e-3)
    )
    ids = metrics.protocols()
    assert set(ids) == set(values)
    assert ids["psnr"].endswith("/n6") and ids["psnr/used_rank2"].endswith("/code-rank2-of-used-in-val/n4")
    metrics.reset()
    assert not metrics.ranked
