import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_modules.hub import hub_file
from lightning_modules.losses.perceptual import LPIPS_URLS, LPIPSLoss
from lightning_modules.metrics import ReconstructionMetrics

SIZE = 32


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(6, 3, SIZE, SIZE, generator=generator) * 2 - 1
    noise = torch.linspace(0.05, 0.8, 6).view(6, 1, 1, 1) * torch.randn(6, 3, SIZE, SIZE, generator=generator)
    return image + noise, image  # of very different quality


def test_pixel_metrics_by_hand() -> None:
    image = torch.full((2, 3, SIZE, SIZE), -1.0)
    reconstruction = image.clone()
    reconstruction[0] += 0.2  # 0.1 on [0, 1] pixels: 20 dB
    reconstruction[1] += 2.0  # 1.0: 0 dB
    metric = ReconstructionMetrics(SIZE, lpips="none", feature_distance=False)
    metric.update(reconstruction, image)
    result = metric.compute()
    assert result["psnr"].item() == pytest.approx((20 + 0) / 2, abs=1e-3)
    assert result["l1"].item() == pytest.approx((0.1 + 1) / 2)
    assert result["l2"].item() == pytest.approx((0.01 + 1) / 2)
    assert set(result) == set(metric.protocols) == {"psnr", "ssim", "l1", "l2"}


def test_psnr_and_ssim_are_means_over_images(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    reconstruction, image = images[0].clamp(-1, 1), images[1]
    metric = ReconstructionMetrics(SIZE, lpips="none", feature_distance=False)
    metric.update(*images)
    result = metric.compute()
    x, y = (reconstruction + 1) / 2, (image + 1) / 2
    psnr = [-10 * math.log10((a - b).square().mean()) for a, b in zip(x, y, strict=True)]
    assert result["psnr"].item() == pytest.approx(sum(psnr) / 6, rel=1e-5)
    ssim = [structural_similarity_index_measure(a[None], b[None], data_range=1.0) for a, b in zip(x, y, strict=True)]
    assert result["ssim"].item() == pytest.approx(torch.stack(ssim).mean().item(), rel=1e-5)


def test_perfect_images() -> None:
    image = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    metric = ReconstructionMetrics(SIZE)
    metric.update(image, image)
    result = metric.compute()
    assert result["ssim"].item() == pytest.approx(1)
    assert result["psnr"].item() == math.inf
    assert result["l1"].item() == result["l2"].item() == 0
    assert result["feature_distance"].item() == pytest.approx(0, abs=1e-6)


def test_batches_and_processes_do_not_matter(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    reconstruction, image = images
    one, rank0, rank1 = (ReconstructionMetrics(SIZE) for _ in range(3))
    one.update(reconstruction, image)
    rank0.update(reconstruction[:1], image[:1])
    rank1.update(reconstruction[1:4], image[1:4])
    rank1.update(reconstruction[4:], image[4:])
    rank0.merge_state(rank1)
    for key, value in one.compute().items():
        torch.testing.assert_close(rank0.compute()[key], value)


def test_autocast_does_not_touch_the_metrics(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    plain, autocast = ReconstructionMetrics(SIZE), ReconstructionMetrics(SIZE)
    plain.update(*images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast.update(*images)
    assert plain.compute() == autocast.compute()


def test_lpips_is_absent_without_weights_and_there_with_them(
    images: tuple[torch.Tensor, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert "lpips" not in ReconstructionMetrics(SIZE, feature_distance=False).protocols

    backbone = LPIPSLoss("alex", pretrained=False)
    monkeypatch.setattr("lightning_modules.metrics.reconstruction.LPIPSLoss", lambda net: backbone)
    metric = ReconstructionMetrics(SIZE, lpips="alex", feature_distance=False)
    metric.update(*images)
    assert metric.protocols["lpips"] == "lpips/alex-v0.1@64px"
    large = [F.interpolate(image.clamp(-1, 1), (64, 64), mode="bilinear") for image in images]
    expected = backbone(*large)  # LPIPS takes [-1, 1]: not B's [-3, 1]
    torch.testing.assert_close(metric.compute()["lpips"], expected)
    assert metric.state_dict() == {}
    assert ReconstructionMetrics(64, lpips="alex", feature_distance=False).protocols["lpips"] == "lpips/alex-v0.1"


def test_auto_is_the_real_alexnet_where_its_weights_are(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    if not hub_file(LPIPS_URLS["alex"]).exists():
        pytest.skip("AlexNet's weights are not there: set TORCH_HOME")
    metric = ReconstructionMetrics(SIZE, feature_distance=False)
    metric.update(*images)
    assert metric.protocols["lpips"] == "lpips/alex-v0.1@64px"
    assert 0.01 < metric.compute()["lpips"] < 1
