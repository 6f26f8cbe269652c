"""LDM's U-Net: parity with the public one, sizes, the start, errors."""

import pytest
import torch
from diffusion_vectors import public_unet
from parity_vectors import assert_close
from torch import Tensor, nn

from experiments.costs.counts import count_macs
from lightning_modules.base import count
from lightning_modules.networks import UNet, UNetConfig
from lightning_modules.networks.dit import time_features

F16 = UNetConfig()
F8 = UNetConfig(channel_multipliers=[1, 2, 4], num_res_blocks=2, attention_factors=[4, 2, 1])
SMALL = UNetConfig(channels=32, channel_multipliers=[1, 2], num_res_blocks=1, head_channels=16, context_width=24)


def test_outputs_equal_the_public_ones() -> None:
    network, io = public_unet()
    features = time_features(io["t"], 32)
    assert_close(features, io["timestep_frequencies"])
    assert_close(network.time(features), io["time_embedding"])
    inner: list[Tensor] = []
    network.down[0].register_forward_hook(lambda module, inputs, output: inner.append(output))
    assert_close(network(io["x"], io["t"], io["y"]), io["out"])
    assert_close(inner[0], io["input_block1_out"])


# LDM's counts leave out the class embedding, 1,001 x 512.
@pytest.mark.parametrize(
    ("config", "channels", "side", "parameters", "gmacs"),
    [(F16, 8, 16, 270_265_864, 22.65), (F8, 4, 32, 394_984_196, 57.04)],
)
def test_sizes_are_the_papers(config: UNetConfig, channels: int, side: int, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        network = UNet(config, channels, (side, side), 1000)
        inputs = torch.zeros(1, channels, side, side), torch.zeros(1), torch.zeros(1, dtype=torch.long)
        assert count(network) - count(network.classes) == parameters
        assert count_macs(network, *inputs) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_prediction_is_zero_at_the_start() -> None:
    network = UNet(SMALL, 4, (8, 8), 5)
    assert not network(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]), torch.tensor([0, 5])).any()


def test_unconditional_network_has_no_cross_attention() -> None:
    network = UNet(SMALL, 4, (8, 8))
    assert network.classes is None and not any("cross" in name for name, _ in network.named_modules())
    nn.init.normal_(network.head.weight)
    out = network(torch.randn(2, 4, 8, 8), torch.tensor([3, 900]))
    assert out.shape == (2, 4, 8, 8) and out.any()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (UNetConfig(channels=48), "channels=48 is not divisible by 32"),
        (UNetConfig(channels=32, head_channels=24), "channels=32 is not divisible by 24"),
        (UNetConfig(channel_multipliers=[]), "channel_multipliers"),
        (UNetConfig(channels=32, channel_multipliers=[1, 1, 1, 1, 1]), "need a grid divisible by 16, got 8 x 8"),
        (UNetConfig(dropout=1.0), "dropout=1.0"),
    ],
)
def test_bad_configs(config: UNetConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(config, 4, (8, 8))


def test_bf16_on_a_cpu_is_float32_rounded() -> None:
    """Self-attention, and attention to the one vector of the class, are then written as their parts."""
    torch.manual_seed(0)
    config = UNetConfig(
        channels=32, channel_multipliers=[1, 2], num_res_blocks=1, attention_factors=[1], context_width=16
    )
    unet = UNet(config, 4, (8, 8), 10).eval()
    for parameter in unet.parameters():  # its last layers begin with zeros
        parameter.data += 0.02 * torch.randn_like(parameter)
    inputs = torch.randn(3, 4, 8, 8), torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0, 4, 9])
    with torch.no_grad():
        wanted = unet(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            found = unet(*inputs).float()
    assert (found - wanted).norm() < 0.02 * wanted.norm()
