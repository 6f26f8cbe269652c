"""The encoder and decoder that taming-transformers and its descendants share, under several sets of names."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from experiments.importers.family import Options, Source, Weight, same

IMAGE_SIZE = 256  # not in the weights: all published models of these families are trained at it


class Names(NamedTuple):
    """Of the encoder's parts: level i has the blocks `{levels}{i}.{blocks}.{j}.`, followed by
    `{levels}{i}.{attention}.{j}.` where attention is; that of the middle is `encoder.{middle}`, "" = always there.
    """

    levels: str
    blocks: str
    attention: str = "attn"
    middle: str = ""


def infer_cnn(source: Source, names: Names, options: Options, **model: Any) -> dict[str, Any]:
    """The `data` and `model` sections.

    Attention is placed by level there and by resolution here, so `image_size` decides its numbers, not its place.
    Raises ValueError for a width that is no multiple of the first one.
    """
    levels, blocks, attention, middle = names
    if options.head_dim is not None:
        raise ValueError(
            "--head-dim is of use to --from enhancing and titok only: attention of this family has one head"
        )
    image_size = options.image_size or IMAGE_SIZE
    channels = source.shape("encoder.conv_in.weight", 4)[0]
    multipliers, resolutions = [], []
    for level in range(max(1, source.count(levels))):
        key = f"{levels}{level}.{blocks}.0.conv1.weight"
        width = source.shape(key, 4)[0]
        if width % channels:
            raise ValueError(
                f"{source.origin}: '{key}' has {width} channels, no multiple of the first width {channels}"
            )
        multipliers.append(width // channels)
        if source.has(f"{levels}{level}.{attention}."):
            resolutions.append(image_size >> level)
    backbone = {
        "name": "cnn",
        "channels": channels,
        "channel_multipliers": multipliers,
        "num_res_blocks": source.count(f"{levels}0.{blocks}."),
        "attention_resolutions": resolutions,
        "middle_attention": not middle or source.has(f"encoder.{middle}"),
        "latent_channels": source.shape("encoder.conv_out.weight", 4)[0],
    }
    return {"data": {"name": "image_folder", "image_size": image_size}, "model": model | {"backbone": backbone}}


def cnn_weight(key: str, rules: Sequence[tuple[str, str]]) -> Weight | None:
    """The source of a weight outside the quantizer; `rules` turn its key into the public one, one after the other."""
    if match := re.fullmatch(r"(pre|post)_quant\.(weight|bias)", key):
        name = "quant_conv" if match[1] == "pre" else "post_quant_conv"
        theirs = f"{name}.{match[2]}"
        return Weight((theirs,), lambda tensor: tensor.flatten(1)) if match[2] == "weight" else same(theirs)
    if not key.startswith(("encoder.", "decoder.")):
        return None
    theirs = key
    for pattern, replacement in rules:
        theirs = re.sub(pattern, replacement, theirs)
    if ".qkv." in key:  # one convolution here, three in the file
        return Weight(tuple(theirs.replace(".qkv.", f".{part}.") for part in "qkv"), lambda *parts: torch.cat(parts))
    return same(theirs)
