"""PatchGAN and StyleGAN discriminators: shapes, batch statistics, double gradients, and errors."""

import pytest
import torch
from torch import nn

from lightning_modules.networks import (
    DISCRIMINATORS,
    DiscriminatorConfig,
    PatchGAN,
    PatchGANConfig,
    StyleGANConfig,
    StyleGANDiscriminator,
    build_discriminator,
)
from lightning_modules.networks.discriminators import append_minibatch_stddev, blur

SMALL_STYLEGAN = StyleGANConfig(channel_base=256, max_channels=16)


@pytest.mark.parametrize(("num_layers", "side"), [(1, 14), (2, 6), (3, 2)])
def test_patchgan_gives_a_logit_a_patch(num_layers: int, side: int) -> None:
    network = build_discriminator(PatchGANConfig(channels=8, num_layers=num_layers), 32)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 1, side, side)


def test_patchgan_initial_weights() -> None:
    weights = [module.weight for module in PatchGAN().modules() if isinstance(module, nn.Conv2d)]
    assert len(weights) == 5
    assert torch.cat([w.flatten() for w in weights]).std().item() == pytest.approx(0.02, rel=0.02)


def test_patchgan_uses_batch_statistics_in_training_only() -> None:
    network = PatchGAN(channels=8)
    images = torch.randn(4, 3, 32, 32)
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    together = network.train()(images)
    assert norm.num_batches_tracked == 1
    assert not torch.allclose(together[:2], network(images[:2]), atol=1e-4)
    before = norm.running_mean.clone()
    together = network.eval()(images)
    torch.testing.assert_close(together[:2], network(images[:2]))
    torch.testing.assert_close(norm.running_mean, before)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 8, 11])
def test_stylegan_gives_a_logit_an_image_for_any_batch(batch_size: int) -> None:
    network = build_discriminator(SMALL_STYLEGAN, 32)
    assert network(torch.randn(batch_size, 3, 32, 32)).shape == (batch_size,)


def test_stylegan_channels_follow_the_table_of_stylegan2() -> None:
    with torch.device("meta"):
        network = StyleGANDiscriminator(256)
    widths = [network.conv_in.out_channels] + [block.conv2.out_channels for block in network.blocks]
    assert widths == [128, 256, 512, 512, 512, 512, 512]


def test_every_parameter_of_stylegan_gets_the_gradient_of_the_r1_penalty() -> None:
    network = build_discriminator(SMALL_STYLEGAN, 16)
    image = torch.randn(4, 3, 16, 16, requires_grad=True)
    (grad,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
    grad.square().sum().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(name.endswith("bias") for name in silent), silent


def test_equalised_learning_rate_keeps_the_variance() -> None:
    network = StyleGANDiscriminator(16, channel_base=1024, max_channels=64)
    assert network.conv_out.weight.std().item() == pytest.approx(1, rel=0.05)
    features = network.act_in(network.conv_in(torch.randn(64, 3, 16, 16)))
    assert 0.5 < features.std().item() < 2


def test_blur_keeps_a_constant_and_removes_a_checkerboard() -> None:
    constant = torch.full((1, 2, 8, 8), 3.0)
    torch.testing.assert_close(blur(constant, padding=0), torch.full((1, 2, 5, 5), 3.0))
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    checkerboard = (1 - 2.0 * ((rows + columns) % 2)).expand(1, 2, 8, 8)
    assert blur(checkerboard, padding=0).abs().max() < 1e-6


def test_minibatch_stddev_sees_collapse() -> None:
    same = append_minibatch_stddev(torch.ones(8, 3, 4, 4))
    assert same.shape == (8, 4, 4, 4)
    assert same[:, -1].max() < 1e-3
    assert append_minibatch_stddev(torch.randn(8, 3, 4, 4))[:, -1].min() > 0.3


def test_configs_and_classes_go_together() -> None:
    for name, (network_class, config_class) in DISCRIMINATORS.items():
        config = config_class()
        assert config.name == name
        with torch.device("meta"):
            assert isinstance(build_discriminator(config, 32), network_class)


@pytest.mark.parametrize(
    ("config", "image_size", "words"),
    [
        (PatchGANConfig(num_layers=4), 32, "image_size 32.*num_layers 4.*48"),
        (SMALL_STYLEGAN, 48, "image_size 48.*power of two"),
        (DiscriminatorConfig(name="biggan"), 32, "'biggan'.*patchgan, stylegan"),
    ],
)
def test_errors_name_the_key_and_the_value(config: DiscriminatorConfig, image_size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_discriminator(config, image_size)
