"""Same weights, same numbers: the discriminators against stored outputs of the public implementations.

Each key function maps a public state-dict key to this suite's; loading is strict on both sides. The weights of encoders
and decoders come through the importer: see tests/experiments/importers/test_import_parity.py.
"""

import re
from collections.abc import Callable

import pytest
import torch
from parity_vectors import Tensors, assert_close, load_io, load_meta, load_weights
from torch import nn

from lightning_modules.networks import PatchGAN, StyleGANDiscriminator


def load(name: str) -> tuple[dict, Tensors, Tensors]:
    """The constructor arguments, weights, and inputs and outputs of one public implementation."""
    return load_meta(name)["constructor"], load_weights(name), load_io(name)


def load_mapped(network: nn.Module, weights: Tensors, prefix: str, key: Callable[[str], str]) -> nn.Module:
    """Loads the weights below `prefix` under this suite's names; no name may be left over on either side."""
    state = {key(name.removeprefix(prefix)): w for name, w in weights.items() if name.startswith(prefix)}
    network.load_state_dict(state)
    return network.eval()


def rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# ---- discriminators


def test_patchgan_equals_taming() -> None:
    constructor, weights, io = load("taming_discriminator")
    network = PatchGAN(constructor["ndf"], constructor["n_layers"])
    load_mapped(network, weights, "main.", lambda name: f"layers.{name}")
    assert_close(network(io["image"]), io["logits_eval"])

    image = io["image"].clone().requires_grad_()
    logits = network.train()(image)
    assert_close(logits, io["logits_train"])
    (grad,) = torch.autograd.grad(-logits.mean(), image)
    assert_close(grad, io["grad_image_train"])
    buffers = dict(network.named_buffers())
    after = {name.removeprefix("after_main."): value for name, value in io.items() if name.startswith("after_")}
    assert len(after) == len(buffers) == 9
    for name, value in after.items():
        assert_close(buffers[f"layers.{name}"], value)


def stylegan_key(name: str) -> str:
    name = re.sub(r"^blocks\.([1-9]\d*)", lambda match: f"blocks.{int(match[1]) - 1}.", name, count=1)
    return rename(
        name,
        [
            (r"^blocks\.0\.0\.weight", "conv_in.weight"),
            (r"^blocks\.0\.1\.bias", "act_in.bias"),
            (r"\.\.", "."),
            (r"conv1\.0", "conv1"),
            (r"conv1\.1", "act1"),
            (r"conv2\.1", "conv2"),
            (r"conv2\.2", "act2"),
            (r"skip\.1", "skip"),
            (r"^final_conv\.0", "conv_out"),
            (r"^final_conv\.1", "act_out"),
            (r"^final_linear\.0\.weight", "hidden.weight"),
            (r"^final_linear\.0\.bias", "act_hidden.bias"),
            (r"^final_linear\.1\.weight", "logit.weight"),
            (r"^final_linear\.1\.bias", "logit_bias"),
        ],
    )


@pytest.fixture
def stylegan() -> tuple[nn.Module, Tensors]:
    constructor, weights, io = load("enhancing_stylegan_discriminator")
    weights = {name: w for name, w in weights.items() if not name.endswith(".kernel")}  # the blur is fixed
    network = StyleGANDiscriminator(constructor["size"], channel_base=32_768 // 32, max_channels=512 // 32)
    return load_mapped(network, weights, "", stylegan_key), io


def test_stylegan_equals_enhancing(stylegan: tuple[nn.Module, Tensors]) -> None:
    network, io = stylegan
    assert_close(network(io["image"]), io["logits"])
    for count in (4, 2, 1):
        assert_close(network(io["image"][:count]), io[f"logits_first{count}"].reshape(count))


def test_stylegan_r1_equals_enhancing(stylegan: tuple[nn.Module, Tensors]) -> None:
    network, io = stylegan
    image = io["image"].clone().requires_grad_()
    (grad,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
    assert_close(grad, io["grad_image"])
    penalty = grad.square().sum(dim=(1, 2, 3)).mean()
    assert_close(penalty, io["r1_penalty"])
    penalty.backward()
    assert network.conv_in.weight.grad.abs().sum() > 0
