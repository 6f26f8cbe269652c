from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

from lightning_modules.hub import hub_file
from lightning_modules.losses.perceptual import (
    LPIPS_URLS,
    EncoderFeatureLoss,
    LPIPSLoss,
    PerceptualLoss,
    build_perceptual,
)

SIZE = 32


@pytest.fixture(scope="module")
def feature_loss() -> EncoderFeatureLoss:
    return EncoderFeatureLoss(SIZE)


@pytest.fixture(scope="module")
def lpips_loss() -> LPIPSLoss:
    return LPIPSLoss("alex", pretrained=False)


@pytest.fixture(params=["feature_loss", "lpips_loss"])
def loss(request: pytest.FixtureRequest) -> PerceptualLoss:
    return request.getfixturevalue(request.param)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty torch.hub cache, and downloads that fail."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


class Parent(nn.Module):
    def __init__(self, loss: PerceptualLoss) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 2)
        self.perceptual = loss


def parameters_of(loss: PerceptualLoss) -> list[nn.Parameter]:
    return list(loss.network.parameters())


def test_zero_for_equal_images_and_growing_with_noise(loss: PerceptualLoss) -> None:
    torch.manual_seed(0)
    image, noise = torch.rand(4, 3, SIZE, SIZE) * 2 - 1, torch.randn(4, 3, SIZE, SIZE)
    assert loss(image, image).item() == pytest.approx(0, abs=1e-6)
    little, much = loss(image + 0.05 * noise, image), loss(image + 0.5 * noise, image)
    assert 0 < little < much
    distance = loss.distance(image + 0.5 * noise, image)
    assert distance.shape == (4,)
    torch.testing.assert_close(distance.mean(), much)


def test_gradient_reaches_the_reconstruction_only(loss: PerceptualLoss) -> None:
    image = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    reconstruction = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    loss(reconstruction, image).backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in parameters_of(loss))


def test_the_parent_neither_trains_nor_saves_it(loss: PerceptualLoss) -> None:
    parent = Parent(loss).train()
    assert set(parent.state_dict()) == {"decoder.weight", "decoder.bias"}
    assert {name for name, _ in parent.named_parameters()} == {"decoder.weight", "decoder.bias"}
    assert not list(loss.buffers())
    assert not any(module.training for module in loss.network.modules())
    assert not any(parameter.requires_grad for parameter in parameters_of(loss))
    parent.load_state_dict(Parent(PerceptualLoss()).state_dict(), strict=True)


def test_it_moves_with_the_parent(loss: PerceptualLoss) -> None:
    parent = Parent(loss).to(torch.float64)
    assert {parameter.dtype for parameter in parameters_of(loss)} == {torch.float64}
    assert loss(torch.zeros(1, 3, SIZE, SIZE).double(), torch.ones(1, 3, SIZE, SIZE).double()).dtype == torch.float64
    parent.to(torch.float32)
    assert {parameter.dtype for parameter in parameters_of(loss)} == {torch.float32}


def test_feature_distance_by_hand(feature_loss: EncoderFeatureLoss) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 3, SIZE, SIZE) * 2 - 1
    expected = []
    for a, b in zip(feature_loss.network.stages(x), feature_loss.network.stages(y), strict=True):
        a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
        expected.append((2 - 2 * (a * b).sum(dim=1)).mean())  # |a - b|^2 of unit vectors
    torch.testing.assert_close(feature_loss(x, y), torch.stack(expected[:4]).mean(), atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("no_network")
def test_missing_weights_name_the_file_and_the_way_out() -> None:
    with pytest.raises(FileNotFoundError, match=r"vgg16-397923af\.pth is missing.*efficientnet-lite0"):
        LPIPSLoss("vgg")


@pytest.mark.usefixtures("no_network")
def test_no_network_stands_in_for_another() -> None:
    """What is on the disk of a machine must not decide what a model is trained with."""
    assert build_perceptual("efficientnet-lite0", SIZE).name == "efficientnet-lite0"
    with pytest.raises(FileNotFoundError):
        build_perceptual("lpips-vgg", SIZE)
    with pytest.raises(ValueError, match='"auto"'):
        build_perceptual("auto", SIZE)


def test_none_is_zero() -> None:
    loss = build_perceptual("none", SIZE)
    assert loss.name == "none"
    assert loss(torch.ones(2, 3, SIZE, SIZE), torch.zeros(2, 3, SIZE, SIZE)).item() == 0


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r'"resnet".*lpips-vgg'):
        build_perceptual("resnet", SIZE)
    with pytest.raises(ValueError, match='No perceptual network "auto"'):  # it would depend on the machine
        build_perceptual("auto", SIZE)
    with pytest.raises(ValueError, match=r'"squeeze".*alex'):
        LPIPSLoss("squeeze")


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_real_lpips_is_that_of_another_implementation(net: str) -> None:
    """torchmetrics' own, which brings the linear weights with it, on real backbones and structured images."""
    if not hub_file(LPIPS_URLS[net]).exists():
        pytest.skip(f"{hub_file(LPIPS_URLS[net])} is not there: set TORCH_HOME")
    generator = torch.Generator().manual_seed(0)
    image = F.interpolate(torch.rand(3, 3, 8, 8, generator=generator) * 2 - 1, (64, 64), mode="bilinear")
    other = (
        image + torch.tensor([0.02, 0.1, 0.4]).view(3, 1, 1, 1) * torch.randn(image.shape, generator=generator)
    ).clamp(-1, 1)
    found = LPIPSLoss(net).distance(other, image)
    assert found[0] < found[1] < found[2]
    theirs = learned_perceptual_image_patch_similarity(other, image, net_type=net)
    assert found.mean().item() == pytest.approx(theirs.item(), rel=1e-4)
