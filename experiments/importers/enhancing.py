"""thuanz123/enhancing-transformers: `ViTVQ`, the unofficial ViT-VQGAN (paper A).

Its pixels are in [0, 1], those of this suite in [-1, 1]. The change of range is a linear map, and the first and last
layers are linear, without padding or overlap, so it is folded into their weights: (x + 1) / 2 goes in, 2 y - 1 comes
out.
"""

import math
import re
from typing import Any

from torch import Tensor

from experiments.importers.family import Family, Options, Source, Weight, same
from lightning_modules.tokenizer import TokenizerConfig

HEAD_DIM = 64  # fixed in the public code; the weights tell heads * head_dim only

RULES = [
    (r"^encoder\.transformer\.positions", "encoder.en_pos_embedding"),
    (r"^decoder\.transformer\.positions", "decoder.de_pos_embedding"),
    (r"\.blocks\.(\d+)\.norm1\.", r".layers.\1.0.norm."),
    (r"\.blocks\.(\d+)\.attention\.qkv\.", r".layers.\1.0.fn.to_qkv."),
    (r"\.blocks\.(\d+)\.attention\.proj\.", r".layers.\1.0.fn.to_out."),
    (r"\.blocks\.(\d+)\.norm2\.", r".layers.\1.1.norm."),
    (r"\.blocks\.(\d+)\.mlp\.", r".layers.\1.1.fn.net."),
    (r"^quantizer\.codes$", "quantizer.embedding.weight"),
]


def dims(source: Source, part: str, head_dim: int) -> list[int]:
    """[blocks, heads, width, MLP width] of "encoder" or "decoder"."""
    layers = f"{part}.transformer.layers."
    mlp_width, width = source.shape(f"{layers}0.1.fn.net.0.weight", 2)
    key = f"{layers}0.0.fn.to_qkv.weight"
    inner = source.shape(key, 2)[0] // 3
    if inner % head_dim or inner == 0:
        raise ValueError(f"{source.origin}: '{key}' has {inner} rows a part, no multiple of --head-dim {head_dim}")
    return [source.count(layers), inner // head_dim, width, mlp_width]


def square_size(source: Source, num_tokens: int, patch_size: int, options: Options) -> int:
    """Pixels along a side. Raises ValueError for a grid that is not square, or another `--image-size`."""
    image_size = math.isqrt(num_tokens) * patch_size
    if math.isqrt(num_tokens) ** 2 != num_tokens:
        raise ValueError(f"{source.origin}: {num_tokens} positions are no square grid; only square images are known")
    if options.image_size not in (None, image_size):
        found = f"{num_tokens} positions of {patch_size}-pixel patches are {image_size} pixels"
        raise ValueError(f"--image-size {options.image_size}: {found}, leave the option out")
    return image_size


def infer(source: Source, options: Options) -> dict[str, Any]:
    """Raises ValueError for a grid that is not square, or an `image_size` that the positions contradict."""
    patch_size = source.shape("encoder.to_patch_embedding.0.weight", 4)[-1]
    image_size = square_size(source, source.shape("encoder.en_pos_embedding", 3)[1], patch_size, options)
    head_dim = HEAD_DIM if options.head_dim is None else options.head_dim
    backbone = {
        "name": "vit",
        "patch_size": patch_size,
        "encoder_dims": dims(source, "encoder", head_dim),
        "decoder_dims": dims(source, "decoder", head_dim),
        "positions": "sincos",
        "mlp_activation": "tanh",
        "tanh_head": False,
        "qkv_bias": False,
        "head_dim": head_dim,
    }
    model = {
        "name": "vit_vqgan",
        **source.codebook("quantizer.embedding.weight"),
        "backbone": backbone,
        "quantizer": {"name": "factorized", "l2_norm": True, "commitment_weight": 0.25, "codebook_weight": 1.0},
    }
    return {"data": {"name": "image_folder", "image_size": image_size}, "model": model}


def patch_bias(bias: Tensor, weight: Tensor) -> Tensor:
    """W (x + 1) / 2 + b = (W / 2) x + (b + the sum of W / 2 over channels and patch)."""
    return bias + weight.sum(dim=(1, 2, 3)) / 2


PIXELS = {
    "encoder.patch_embedding.weight": Weight(("encoder.to_patch_embedding.0.weight",), lambda weight: weight / 2),
    "encoder.patch_embedding.bias": Weight(
        ("encoder.to_patch_embedding.0.bias", "encoder.to_patch_embedding.0.weight"), patch_bias
    ),
    "decoder.pixels.weight": Weight(("decoder.to_pixel.1.weight",), lambda weight: 2 * weight),
    "decoder.pixels.bias": Weight(("decoder.to_pixel.1.bias",), lambda bias: 2 * bias - 1),
}


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    if key in PIXELS:
        return PIXELS[key]
    if not key.startswith(("encoder.", "decoder.", "pre_quant.", "post_quant.", "quantizer.")):
        return None
    for pattern, replacement in RULES:
        key = re.sub(pattern, replacement, key)
    return same(key)


ENHANCING = Family(
    signature=("encoder.to_patch_embedding.",),
    wrappers=("state_dict", "model"),
    dropped={"loss.": "LPIPS and discriminator"},
    infer=infer,
    weight=weight,
)
