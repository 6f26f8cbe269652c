"""DiT and SiT: parity with the public networks, sizes, the start, errors."""

import pytest
import torch
from diffusion_vectors import public_dit
from parity_vectors import assert_close, load_weights

from experiments.costs.counts import count_macs
from lightning_modules.base import count
from lightning_modules.networks import DiT, DiTConfig
from lightning_modules.networks.dit import time_features


@pytest.mark.parametrize("name", ["dit", "sit"])
def test_outputs_equal_the_public_ones(name: str) -> None:
    network, io = public_dit(name)
    features = time_features(io["t"], 256)
    assert_close(features, io["timestep_frequencies"])
    assert_close(network.time(features), io["timestep_embedding"])
    out = network(io["x"], io["t"], io["y"])
    assert_close(out, io["out"])
    assert out.shape[1] == network.out_channels


def test_positions_and_tokens_equal_dit() -> None:
    network, io = public_dit("dit")
    assert_close(network.positions, load_weights("dit")["pos_embed"])
    assert_close(network.patches(io["x"]).flatten(2).transpose(1, 2) + network.positions, io["tokens"])


# The table of positions, 64 x width here, is a weight in the public count.
@pytest.mark.parametrize(
    ("size", "parameters", "gmacs"), [("xl", 674_963_776, 29.04), ("b", 130_401_856, 5.56), ("s", 32_908_096, 1.41)]
)
def test_sizes_are_the_papers(size: str, parameters: int, gmacs: float) -> None:
    with torch.device("meta"):
        network = DiT(DiTConfig(size=size), 8, (16, 16), 1000)
        inputs = torch.zeros(1, 8, 16, 16), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
        assert count(network) + network.positions.numel() == parameters
        assert count_macs(network, *inputs) / 1e9 == pytest.approx(gmacs, rel=2e-3)


def test_original_dit_size() -> None:
    with torch.device("meta"):
        network = DiT(DiTConfig(), 4, (32, 32), 1000)
    assert count(network) == 674_834_720


@pytest.mark.parametrize("num_classes", [0, 5])
def test_prediction_is_zero_at_the_start(num_classes: int) -> None:
    network = DiT(DiTConfig(size="micro"), 4, (8, 8), num_classes)
    x = torch.randn(2, 4, 8, 8)
    out = network(x, torch.tensor([3, 900]))
    assert out.shape == (2, 8, 8, 8) and not out.any()
    tokens = network.patches(x).flatten(2).transpose(1, 2)
    condition = torch.randn(2, 128)
    assert torch.equal(network.blocks[0](tokens, condition), tokens)  # adaLN-Zero: the identity


def test_no_label_means_no_class() -> None:
    network, io = public_dit("dit")
    assert torch.equal(network(io["x"], io["t"]), network(io["x"], io["t"], torch.full_like(io["y"], 10)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DiTConfig(size="huge"), "size='huge' is none of micro"),
        (DiTConfig(dims=[2, 48]), r"dims=\[2, 48\] must be \[blocks, width, heads\]"),
        (DiTConfig(dims=[2, 48, 5]), "5 heads do not divide the width"),
        (DiTConfig(dims=[2, 6, 2]), "width must be divisible by 4"),
        (DiTConfig(patch_size=0), "patch_size=0 must be at least 1"),
        (DiTConfig(learn_sigma=False, drop_sigma=True), "drop_sigma=True needs learn_sigma=True"),
        (DiTConfig(size="micro", patch_size=3), "patch_size=3 does not divide the grid of 8 x 8"),
    ],
)
def test_bad_configs(config: DiTConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiT(config, 4, (8, 8))


def test_bad_inputs() -> None:
    with pytest.raises(ValueError, match="square grid of latents, got 8 x 4"):
        DiT(DiTConfig(size="micro"), 4, (8, 4))
    network, io = public_dit("dit")
    with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
        network(io["x"], io["t"], io["y"][:2])
