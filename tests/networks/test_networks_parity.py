"""Same weights, same numbers: the networks against stored outputs of the public implementations.

Each `*_key` function maps one of their state-dict names to ours; loading is strict on both sides.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules.networks import (
    CNNConfig,
    CNNDecoder,
    CNNEncoder,
    PatchGAN,
    StyleGANDiscriminator,
    ViTConfig,
    ViTDecoder,
    ViTEncoder,
)

PROJECT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("SHARED_DIR", PROJECT.parent / "shared")) / "parity" / "vectors"
pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason="needs parity vectors: set SHARED_DIR")

Tensors = dict[str, Tensor]


def load(name: str) -> tuple[dict, Tensors, Tensors]:
    """The constructor arguments, weights, and inputs and outputs of one public implementation."""
    folder = VECTORS / name
    meta = json.loads((folder / "meta.json").read_text())
    return (
        meta["constructor"],
        load_file(folder / "weights.safetensors"),
        load_file(folder / "io.safetensors"),
    )


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)


def load_mapped(network: nn.Module, weights: Tensors, prefix: str, key: Callable[[str], str]) -> nn.Module:
    """Loads the weights below `prefix` under our names; no name may be left over on either side."""
    state = {key(name.removeprefix(prefix)): w for name, w in weights.items() if name.startswith(prefix)}
    network.load_state_dict(state)
    return network.eval()


def rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


# ---- taming-transformers: CNN


def fuse_qkv(weights: Tensors) -> Tensors:
    """The three convolutions q, k, v of each attention as one."""
    fused = {name: w for name, w in weights.items() if not re.search(r"\.[qkv]\.(weight|bias)$", name)}
    for name in weights:
        if match := re.fullmatch(r"(.*)\.q\.(weight|bias)", name):
            stem, kind = match.groups()
            fused[f"{stem}.qkv.{kind}"] = torch.cat([weights[f"{stem}.{part}.{kind}"] for part in "qkv"])
    return fused


def taming_key(num_levels: int) -> Callable[[str], str]:
    def key(name: str) -> str:
        name = re.sub(r"^up\.(\d+)", lambda match: f"levels.{num_levels - 1 - int(match[1])}", name)
        return rename(
            name,
            [
                (r"^down\.(\d+)", r"levels.\1"),
                (r"mid\.block_1", "middle.0"),
                (r"mid\.attn_1", "middle.1"),
                (r"mid\.block_2", "middle.2"),
                (r"\.block\.", ".blocks."),
                (r"\.attn\.", ".attentions."),
                (r"\.(down|up)sample\.", ".resample."),
                (r"nin_shortcut", "shortcut"),
                (r"proj_out", "proj"),
            ],
        )

    return key


def test_cnn_equals_taming() -> None:
    constructor, weights, io = load("taming_cnn")
    theirs = constructor["ddconfig"]
    config = CNNConfig(
        channels=theirs["ch"],
        channel_multipliers=theirs["ch_mult"],
        num_res_blocks=theirs["num_res_blocks"],
        attention_resolutions=theirs["attn_resolutions"],
        latent_channels=theirs["z_channels"],
        dropout=theirs["dropout"],
    )
    weights = fuse_qkv(weights)
    key = taming_key(len(config.channel_multipliers))
    encoder = load_mapped(CNNEncoder(config, theirs["resolution"]), weights, "encoder.", key)
    decoder = load_mapped(CNNDecoder(config, theirs["resolution"]), weights, "decoder.", key)

    z = encoder(io["image"])
    assert_close(z.permute(0, 3, 1, 2), io["encoder_out"])
    latents = F.conv2d(io["encoder_out"], weights["quant_conv.weight"], weights["quant_conv.bias"])
    assert_close(latents, io["latents"])
    codes = F.conv2d(io["codebook_entry"], weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
    assert_close(decoder(codes.permute(0, 2, 3, 1)), io["reconstruction_from_indices"])


# ---- enhancing-transformers: ViT


def enhancing_key(name: str) -> str:
    return rename(
        name,
        [
            (r"^(en|de)_pos_embedding", "transformer.positions"),
            (r"^to_patch_embedding\.0", "patch_embedding"),
            (r"^to_pixel\.1", "pixels"),
            (r"layers\.(\d+)\.0\.norm", r"blocks.\1.norm1"),
            (r"layers\.(\d+)\.0\.fn\.to_qkv", r"blocks.\1.attention.qkv"),
            (r"layers\.(\d+)\.0\.fn\.to_out", r"blocks.\1.attention.proj"),
            (r"layers\.(\d+)\.1\.norm", r"blocks.\1.norm2"),
            (r"layers\.(\d+)\.1\.fn\.net", r"blocks.\1.mlp"),
        ],
    )


def enhancing_config(constructor: dict) -> ViTConfig:
    def dims(part: dict) -> list[int]:
        return [part["depth"], part["heads"], part["dim"], part["mlp_dim"]]

    return ViTConfig(
        patch_size=constructor["patch_size"],
        encoder_dims=dims(constructor["encoder"]),
        decoder_dims=dims(constructor["decoder"]),
        positions="sincos",
        mlp_activation="tanh",
        tanh_head=False,
        qkv_bias=False,
        head_dim=64,
    )


def test_vit_equals_enhancing() -> None:
    constructor, weights, io = load("enhancing_vit")
    config = enhancing_config(constructor)
    encoder = load_mapped(ViTEncoder(config, constructor["image_size"]), weights, "encoder.", enhancing_key)
    decoder = load_mapped(ViTDecoder(config, constructor["image_size"]), weights, "decoder.", enhancing_key)

    z = encoder(io["image"])
    assert_close(z.flatten(1, 2), io["encoder_out"])
    codes = F.linear(io["codebook_entry"], weights["post_quant.weight"], weights["post_quant.bias"])
    image = decoder(codes.unflatten(1, (decoder.grid_size, decoder.grid_size)))
    assert_close(image, io["reconstruction_from_indices"])


def test_sincos_positions_equal_enhancing() -> None:
    constructor, weights, _ = load("enhancing_vit")
    encoder = ViTEncoder(enhancing_config(constructor), constructor["image_size"])
    assert_close(encoder.transformer.positions, weights["encoder.en_pos_embedding"])


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
