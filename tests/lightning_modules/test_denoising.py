"""Guidance and the noise of each image."""

from math import nan

import pytest
import torch
from diffusion_vectors import public_dit, public_unet
from parity_vectors import assert_close

from lightning_modules.denoising import GaussianNoise, GuidanceConfig, guided

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", ["dit", "sit"])
@pytest.mark.parametrize(("channels", "output"), [(3, "out_with_cfg"), (0, "out_with_cfg_all_channels")])
def test_guidance_equals_the_public_one(name: str, channels: int, output: str) -> None:
    network, io = public_dit(name)
    predict = guided(network, 10, GuidanceConfig(4.0, channels))
    half = len(io["cfg_x"]) // 2  # the public networks take the images twice, and return them so
    assert_close(predict(io["cfg_x"][:half], io["cfg_t"][:half], io["cfg_y"][:half]), io[output][:half])


def test_scale_1_is_no_guidance_and_scale_0_no_class() -> None:
    network, io = public_unet()
    x, t, labels = io["x"], io["t"], io["y"].clamp(max=9)
    assert guided(network, 10, GuidanceConfig(1.0)) is network
    assert_close(guided(network, 10, GuidanceConfig(0.0))(x, t, labels), network(x, t))
    assert_close(guided(network, 10, GuidanceConfig(1 + 1e-6))(x, t, labels), network(x, t, labels))


def test_bad_guidance() -> None:
    with pytest.raises(ValueError, match="guidance_scale=nan must be finite"):
        GuidanceConfig(nan).check()
    with pytest.raises(ValueError, match="guided_channels=-1"):
        GuidanceConfig(guided_channels=-1).check()
    with pytest.raises(ValueError, match="guided_channels=9 is more than the 8 channels"):
        GuidanceConfig(guided_channels=9).check_channels(8)
    network, io = public_dit("dit")
    with pytest.raises(ValueError, match="needs a model with classes, and labels"):
        guided(network, 10, GuidanceConfig(4.0))(io["x"], io["t"], None)


def test_noise_of_an_image_depends_on_its_id_and_the_seed_alone() -> None:
    together, alone = GaussianNoise(5, [3, 4], (2, 3), CPU), GaussianNoise(5, [4], (2, 3), CPU)
    for _ in range(3):
        assert torch.equal(together()[1], alone()[0])
    first, other = GaussianNoise(5, [4], (2, 3), CPU)(), GaussianNoise(6, [4], (2, 3), CPU)()
    assert not torch.equal(first, other) and not torch.equal(first, alone())
    many = GaussianNoise(0, range(64), (1000,), CPU)()
    assert abs(many.mean()) < 0.02 and abs(many.std() - 1) < 0.02


def test_ids_of_guidance() -> None:
    assert GuidanceConfig().guidance_id == ""
    assert GuidanceConfig(1.4).guidance_id == "-guidance1.4"
    assert GuidanceConfig(8.0, 3).guidance_id == "-guidance8-of3"
