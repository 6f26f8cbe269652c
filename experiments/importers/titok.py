"""bytedance/1d-tokenizer, TiTok: the single-stage models (BL-64, BL-128, SL-256), whose decoder gives pixels.

Its pixels are in [0, 1], those of this suite in [-1, 1]; the change of range is folded into the first and the last
layer, exactly (see `enhancing`).
"""

import re
from typing import Any

from torch import Tensor

from experiments.config.values import select
from experiments.importers.enhancing import HEAD_DIM, patch_bias, square_size
from experiments.importers.family import Family, Options, Source, Weight, same
from lightning_modules.networks import TiTokConfig
from lightning_modules.tokenizer import TokenizerConfig

RULES = [
    (r"^encoder\.latents$", "latent_tokens"),
    (r"^pre_quant\.", "encoder.conv_out."),
    (r"^post_quant\.", "decoder.decoder_embed."),
    (r"^quantizer\.codes$", "quantize.embedding.weight"),
    (r"\.transformer\.class_token$", ".class_embedding"),
    (r"\.transformer\.positions$", ".positional_embedding"),
    (r"\.transformer\.latent_positions$", ".latent_token_positional_embedding"),
    (r"\.transformer\.norm_in\.", ".ln_pre."),
    (r"coder\.norm\.", "coder.ln_post."),
    (r"\.blocks\.(\d+)\.norm(\d)\.", r".\1.ln_\2."),
    (r"\.blocks\.(\d+)\.attention\.qkv\.", r".\1.attn.in_proj_"),
    (r"\.blocks\.(\d+)\.attention\.proj\.", r".\1.attn.out_proj."),
    (r"\.blocks\.(\d+)\.mlp\.0\.", r".\1.mlp.c_fc."),
    (r"\.blocks\.(\d+)\.mlp\.2\.", r".\1.mlp.c_proj."),
    (r"^decoder\.pixels\.", "decoder.ffn.0."),
]
PIXELS = {
    "encoder.patch_embedding.weight": Weight(("encoder.patch_embed.weight",), lambda weight: weight / 2),
    "encoder.patch_embedding.bias": Weight(("encoder.patch_embed.bias", "encoder.patch_embed.weight"), patch_bias),
    "decoder.conv_out.weight": Weight(("decoder.conv_out.weight",), lambda weight: 2 * weight),
    "decoder.conv_out.bias": Weight(("decoder.conv_out.bias",), lambda bias: 2 * bias - 1),
}


def dims(source: Source, part: str, head_dim: int) -> list[int]:
    """[blocks, heads, width, MLP width] of "encoder" or "decoder"."""
    layers, key = f"{part}.transformer.", f"{part}.transformer.0.mlp.c_fc.weight"
    mlp_width, width = source.shape(key, 2)
    if width % head_dim:
        raise ValueError(f"{source.origin}: '{key}' is of width {width}, no multiple of --head-dim {head_dim}")
    return [source.count(layers), width // head_dim, width, mlp_width]


def infer(source: Source, options: Options) -> dict[str, Any]:
    """Raises ValueError for a model of two stages, and for an `image_size` that the positions contradict."""
    if source.has("decoder.ffn.2."):
        raise ValueError(
            f"{source.origin}: a TiTok of two stages ('decoder.ffn.2.*': L-32, B-64, S-128), which gives logits over "
            "another model's codes, not pixels; only single-stage models (BL-64, BL-128, SL-256) can be imported"
        )
    head_dim = HEAD_DIM if options.head_dim is None else options.head_dim
    patch_size = source.shape("encoder.patch_embed.weight", 4)[-1]
    num_patches = source.shape("encoder.positional_embedding", 2)[0] - 1  # the first is the class token's
    backbone = {
        "name": "titok",
        "patch_size": patch_size,
        "num_latents": source.shape("latent_tokens", 2)[0],
        "encoder_dims": dims(source, "encoder", head_dim),
        "decoder_dims": dims(source, "decoder", head_dim),
    }
    # All published single-stage models look up the nearest code without normalising; config.json beside the file says.
    l2_norm = bool(select(options.beside(), "model.vq_model.use_l2_norm"))
    quantizer = {"name": "factorized", "l2_norm": l2_norm, "commitment_weight": 0.25, "codebook_weight": 1.0}
    model = {"name": "vit_vqgan", "backbone": backbone, "quantizer": quantizer, **source.codebook()}
    image_size = square_size(source, num_patches, patch_size, options)
    return {"data": {"name": "image_folder", "image_size": image_size}, "model": model}


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    if key in PIXELS:
        return PIXELS[key]
    if not key.startswith(("encoder.", "decoder.", "pre_quant.", "post_quant.", "quantizer.")):
        return None
    theirs = key
    for pattern, replacement in RULES:
        theirs = re.sub(pattern, replacement, theirs)
    if key == "pre_quant.weight":
        return Weight((theirs,), lambda tensor: tensor.flatten(1))
    if not key.startswith("decoder.pixels."):
        return same(theirs)
    assert isinstance(config.backbone, TiTokConfig)
    area = config.backbone.patch_size**2

    def colours_first(tensor: Tensor) -> Tensor:
        """Rows in the order (row, column, colour) of the public code -> (colour, row, column)."""
        return tensor.unflatten(0, (area, -1)).transpose(0, 1).flatten(0, 1)

    return Weight((theirs,), colours_first)


TITOK = Family(
    signature=("latent_tokens", "encoder.latent_token_positional_embedding"),
    wrappers=("state_dict", "model"),
    dropped={},
    infer=infer,
    weight=weight,
)
