"""CNN and ViT encoders and decoders: shapes, sizes, gradients, and what a user may get wrong."""

import pytest
import torch
from torch import nn

from lightning_modules.networks import BACKBONES, CNNConfig, MAGVIT2Config, TiTokConfig, ViTConfig
from lightning_modules.networks.base import BackboneConfig

SMALL_CNN = CNNConfig(
    channels=8, channel_multipliers=[1, 2, 2], num_res_blocks=1, attention_resolutions=[8], latent_channels=16
)
SMALL_STEM = CNNConfig(
    channels=8, channel_multipliers=[1, 2], num_res_blocks=1, attention_resolutions=[8], latent_channels=16, stem=2
)
SMALL_VIT = ViTConfig(patch_size=4, encoder_size="micro", decoder_size="tiny")
CONFIGS = [
    SMALL_CNN,
    SMALL_VIT,
    SMALL_STEM,
    ViTConfig(patch_size=4, encoder_size="micro", decoder_size="micro", positions="sincos"),
    MAGVIT2Config(channels=8, channel_multipliers=[1, 2, 2], num_res_blocks=1, latent_channels=10),
    TiTokConfig(patch_size=4, num_latents=5, encoder_dims=[1, 1, 32, 64], decoder_dims=[1, 2, 64, 64]),
]
IDS = ["cnn", "vit", "stem", "vit-sincos", "magvit2", "titok"]


def build(config: BackboneConfig, image_size: int) -> tuple[nn.Module, nn.Module]:
    encoder, decoder, config_class = BACKBONES[config.name]
    assert isinstance(config, config_class)
    return encoder(config, image_size), decoder(config, image_size)


def num_parameters(*modules: nn.Module) -> float:
    """In millions."""
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_shapes_are_channels_last_latents(config: BackboneConfig) -> None:
    encoder, decoder = build(config, 32)
    z = encoder(torch.randn(2, 3, 32, 32))
    grid = (1, 5) if config.name == "titok" else (8, 8)
    assert z.shape == (2, *encoder.grid, encoder.width) and encoder.grid == grid
    assert encoder.fits_grid(*grid) and not encoder.fits_grid(0, 8)
    latents = torch.randn(2, *grid, decoder.width)
    assert decoder(latents).shape == (2, 3, 32, 32)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_gradient_reaches_every_parameter(config: BackboneConfig) -> None:
    encoder, decoder = build(config, 32)
    inputs = torch.randn(2, 3, 32, 32), torch.randn(2, *encoder.grid, decoder.width)
    for network, x in zip((encoder, decoder), inputs, strict=True):
        network(x).square().mean().backward()
        silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # A bias that the next norm takes away, or a key bias, which softmax cannot see, may have no gradient.
        assert all(name.endswith("bias") for name in silent), silent


@pytest.mark.parametrize("config", CONFIGS[:3], ids=["cnn", "vit", "stem"])
def test_decoder_can_have_six_maps_for_the_logit_laplace_loss(config: BackboneConfig) -> None:
    _, decoder, _ = BACKBONES[config.name]
    network = decoder(config, 32, out_channels=6)
    assert network(torch.randn(2, 8, 8, network.width)).shape == (2, 6, 32, 32)


def test_cnn_decoder_computes_in_contiguous_memory() -> None:
    """Channels-last latents must not switch the network's memory format: group norms are slow there."""
    _, decoder = build(SMALL_CNN, 32)
    assert decoder(torch.randn(2, 8, 8, decoder.width)).is_contiguous()


@pytest.mark.parametrize("config", CONFIGS[:3], ids=["cnn", "vit", "stem"])
def test_last_layer_is_what_makes_the_pixels(config: BackboneConfig) -> None:
    _, decoder = build(config, 32)
    with torch.no_grad():
        decoder.last_layer.zero_()
    image = decoder(torch.randn(1, 8, 8, decoder.width))
    side = getattr(config, "stem", 1)  # only the bias is left, one number for each pixel of the stem's squares
    torch.testing.assert_close(image, image[..., :side, :side].repeat(1, 1, 32 // side, 32 // side))
    assert any(decoder.last_layer is parameter for parameter in decoder.parameters())


def test_each_token_of_the_vit_sees_its_own_patch() -> None:
    """Row-major order, in and out: without mixing blocks a patch of the image maps to its own patch."""
    config = ViTConfig(patch_size=4, encoder_dims=[0, 1, 48, 48], decoder_dims=[0, 1, 48, 48])
    encoder, decoder = build(config, 32)
    image = torch.zeros(1, 3, 32, 32)
    changed = image.clone()
    changed[:, :, 4:8, 20:24] = 1  # patch row 1, column 5
    difference = (encoder(changed) - encoder(image)).abs().sum(-1)[0]
    assert difference.nonzero().tolist() == [[1, 5]]
    z = torch.zeros(1, 8, 8, 48)
    moved = z.clone()
    moved[0, 1, 5] = torch.randn(48)
    pixels = (decoder(moved) - decoder(z)).abs().sum(1)[0]
    assert pixels[4:8, 20:24].min() > 0
    torch.testing.assert_close(pixels.sum(), pixels[4:8, 20:24].sum())


@pytest.mark.parametrize(("size", "blocks"), [("small", 25.2), ("base", 84.9), ("large", 629.0)])
def test_vit_sizes_are_those_of_table_2(size: str, blocks: float) -> None:
    with torch.device("meta"):
        encoder, decoder = build(ViTConfig(encoder_size=size, decoder_size=size), 256)
    for network in (encoder, decoder):
        assert all(p.is_meta for p in network.parameters())
        # LayerNorms and biases, which papers.md's arithmetic leaves out, are below 0.5 %.
        assert num_parameters(*network.transformer.blocks) == pytest.approx(blocks, rel=0.005)
        assert network.grid_size**2 == 1024


def test_default_cnn_is_the_imagenet_vqgan() -> None:
    with torch.device("meta"):
        encoder, decoder = build(CNNConfig(), 256)
    assert encoder.grid_size == 16
    assert num_parameters(encoder) == pytest.approx(29.30, abs=0.01)
    assert num_parameters(decoder) == pytest.approx(42.46, abs=0.1)


def test_tanh_head_is_a_two_layer_feed_forward_and_can_be_left_out() -> None:
    for network in build(SMALL_VIT, 32):
        first, activation, second = network.transformer.head
        assert isinstance(activation, nn.Tanh)
        assert first.in_features == second.out_features == network.width
    without, _ = build(ViTConfig(patch_size=4, encoder_size="micro", decoder_size="micro", tanh_head=False), 32)
    assert isinstance(without.transformer.head, nn.Identity)
    assert not any(isinstance(module, nn.Tanh) for module in without.modules())


def test_options_of_the_vit_have_their_effect() -> None:
    plain = ViTConfig(patch_size=4, encoder_size="micro", decoder_size="micro", positions="sincos")
    encoder, _ = build(plain, 32)
    assert "transformer.positions" in encoder.state_dict()
    assert "transformer.positions" not in dict(encoder.named_parameters())
    wide, _ = build(
        ViTConfig(patch_size=4, encoder_size="micro", decoder_size="micro", head_dim=32, qkv_bias=False), 32
    )
    attention = wide.transformer.blocks[0].attention
    assert attention.qkv.out_features == 3 * 4 * 32
    assert attention.qkv.bias is None


@pytest.mark.parametrize(
    ("config", "image_size", "words"),
    [
        (CNNConfig(), 100, "image_size 100.*16"),
        (ViTConfig(), 30, "image_size 30.*patch_size 8"),
        (MAGVIT2Config(), 100, "image_size 100.*16"),
        (MAGVIT2Config(), 16, "image_size 16 is a single latent"),
        (TiTokConfig(), 100, "image_size 100.*patch_size 16"),
        (ViTConfig(encoder_size="huge"), 32, "encoder_size 'huge'.*small"),
        (ViTConfig(encoder_dims=[1, 2]), 32, "encoder_dims"),
        (ViTConfig(encoder_dims=[1, 3, 64, 64]), 32, "width 64.*3 heads"),
        (ViTConfig(positions="rotary"), 32, "positions 'rotary'"),
        (ViTConfig(mlp_activation="relu"), 32, "mlp_activation 'relu'.*gelu"),
    ],
)
def test_errors_name_the_key_and_the_value(config: BackboneConfig, image_size: int, words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        build(config, image_size)
