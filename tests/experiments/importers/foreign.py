"""Small made-up state dicts in the names of the public code bases, for the importer's tests."""

import torch
from torch import Tensor

from experiments.importers import Options

Tensors = dict[str, Tensor]
K, D, SIZE = 32, 8, Options(image_size=16)


def conv(prefix: str, inputs: int, outputs: int, side: int) -> Tensors:
    return {f"{prefix}.weight": torch.randn(outputs, inputs, side, side) / 9, f"{prefix}.bias": torch.randn(outputs)}


def norm(prefix: str, channels: int) -> Tensors:
    return {f"{prefix}.weight": torch.rand(channels) + 0.5, f"{prefix}.bias": torch.randn(channels)}


def block(prefix: str, inputs: int, outputs: int) -> Tensors:
    shortcut = conv(f"{prefix}.nin_shortcut", inputs, outputs, 1) if inputs != outputs else {}
    first = norm(f"{prefix}.norm1", inputs) | conv(f"{prefix}.conv1", inputs, outputs, 3)
    return first | norm(f"{prefix}.norm2", outputs) | conv(f"{prefix}.conv2", outputs, outputs, 3) | shortcut


def attention(prefix: str, channels: int) -> Tensors:
    state = norm(f"{prefix}.norm", channels)
    for part in ("q", "k", "v", "proj_out"):
        state |= conv(f"{prefix}.{part}", channels, channels, 1)
    return state


def middle(part: str) -> Tensors:
    blocks = block(f"{part}.mid.block_1", 16, 16) | block(f"{part}.mid.block_2", 16, 16)
    return blocks | attention(f"{part}.mid.attn_1", 16)


def taming_state() -> Tensors:
    """What taming's VQModel of 8 channels, multipliers 1 and 2, and attention at the coarser level would save."""
    torch.manual_seed(0)
    state = conv("encoder.conv_in", 3, 8, 3) | block("encoder.down.0.block.0", 8, 8)
    state |= conv("encoder.down.0.downsample.conv", 8, 8, 3)
    state |= block("encoder.down.1.block.0", 8, 16) | attention("encoder.down.1.attn.0", 16)
    state |= middle("encoder") | norm("encoder.norm_out", 16) | conv("encoder.conv_out", 16, 16, 3)
    state |= conv("decoder.conv_in", 16, 16, 3) | middle("decoder")
    for index in (0, 1):
        state |= block(f"decoder.up.1.block.{index}", 16, 16) | attention(f"decoder.up.1.attn.{index}", 16)
        state |= block(f"decoder.up.0.block.{index}", 8 if index else 16, 8)
    state |= (
        conv("decoder.up.1.upsample.conv", 16, 16, 3) | norm("decoder.norm_out", 8) | conv("decoder.conv_out", 8, 3, 3)
    )
    state |= conv("quant_conv", 16, D, 1) | conv("post_quant_conv", D, 16, 1)
    state |= {"quantize.embedding.weight": torch.randn(K, D), "loss.discriminator.main.0.weight": torch.randn(3)}
    return state


def as_llamagen(state: Tensors) -> Tensors:
    """The same network under LlamaGen's names; its decoder's levels are numbered from the coarsest."""
    rules = [
        ("encoder.down.", "encoder.conv_blocks."),
        ("decoder.up.1.", "decoder.conv_blocks.0."),
        ("decoder.up.0.", "decoder.conv_blocks.1."),
        (".block.", ".res."),
        (".mid.block_1.", ".mid.0."),
        (".mid.attn_1.", ".mid.1."),
        (".mid.block_2.", ".mid.2."),
    ]
    renamed = {}
    for key, value in state.items():
        for old, new in rules:
            key = key.replace(old, new)
        renamed[key] = value
    del renamed["loss.discriminator.main.0.weight"]
    return renamed | {"quantize.codebook_used": torch.zeros(65536)}


def as_vqgan_lc(state: Tensors) -> Tensors:
    kept = {key: value for key, value in state.items() if not key.startswith(("quantize.", "loss."))}
    kept |= {"tok_embeddings.weight": torch.randn(K, 20), "perceptual_loss.lin0.model.1.weight": torch.randn(3)}
    return kept | {"codebook_projection.weight": torch.randn(D, 20), "codebook_projection.bias": torch.randn(D)}


def as_enhancing(state: Tensors) -> Tensors:
    return {"encoder.to_patch_embedding.0.weight": torch.zeros(8, 3, 4, 4), "loss.a": torch.zeros(1)}
