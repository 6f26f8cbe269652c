"""huggingface/diffusers, `VQModel` with group norms: taming's network under other names."""

import re
from typing import Any

import torch
from torch import Tensor

from experiments.importers.cnn import Names, cnn_weight, infer_cnn
from experiments.importers.family import Family, Options, Source, Tensors, Weight, same
from lightning_modules.tokenizer import TokenizerConfig

RULES = [  # levels are numbered as in this suite: the decoder's first is the coarsest
    (r"^encoder\.levels\.", "encoder.down_blocks."),
    (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"\.blocks\.", ".resnets."),  # not down_blocks, which a dot does not precede
    (r"^(encoder.*)\.resample\.", r"\1.downsamplers.0."),
    (r"^(decoder.*)\.resample\.", r"\1.upsamplers.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."),
    (r"\.norm\.", ".group_norm."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.shortcut\.", ".conv_shortcut."),
    (r"\.proj\.", ".to_out.0."),
]
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OURS = {"norm_num_groups": 32, "norm_type": "group", "act_fn": "silu"}  # what config.json may have otherwise


def infer(source: Source, options: Options) -> dict[str, Any]:
    """Raises ValueError for the spatial norms of MoVQ, and where config.json says what no network here has."""
    public = options.beside()
    differ = [f"{key}={public[key]}" for key, value in OURS.items() if public.get(key, value) != value]
    if any(".norm_layer." in key for key in source.tensors):
        differ = ["norm_type=spatial"]  # MoVQ
    if differ:
        wanted = ", ".join(f"{key}={value}" for key, value in OURS.items())
        raise ValueError(
            f"{source.origin}: a VQModel with {', '.join(differ)}; only those with {wanted} can be imported"
        )
    # The library's loss is taming's legacy order: 0.25 multiplies the codebook term. It changes no reconstruction.
    quantizer = {"name": "vq", "commitment_weight": 1.0, "codebook_weight": 0.25}
    model = {"name": "vqgan", "quantizer": quantizer, **source.codebook()}
    names = Names("encoder.down_blocks.", "resnets", "attentions", "mid_block.attentions.")
    return infer_cnn(source, names, options, **model)


def new_names(tensors: Tensors, origin: str) -> tuple[Tensors, str]:
    """Old uploads (LDM's) name the parts of their attention otherwise; the library renames them as well."""
    old = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.")
    return {old.sub(lambda m: f"{m[1]}.{OLD_NAMES[m[2]]}.", key): tensor for key, tensor in tensors.items()}, ""


def as_convolution(tensor: Tensor) -> Tensor:
    """The weight of a linear layer (C, C) as one of a 1 x 1 convolution; a bias as it is."""
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    if key == "quantizer.codes":
        return same("quantize.embedding.weight")
    found = cnn_weight(key, RULES)
    if found is None or not (".qkv." in key or ".proj." in key):
        return found
    keys = tuple(re.sub(r"\.([qkv])\.", r".to_\1.", theirs) for theirs in found.keys)
    return Weight(keys, lambda *parts: as_convolution(torch.cat(parts)))


DIFFUSERS = Family(
    signature=("encoder.down_blocks.", "quantize."),
    wrappers=("state_dict", "model"),
    dropped={},
    infer=infer,
    weight=weight,
    adapt=new_names,
)
