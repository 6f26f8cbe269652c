"""TencentARC/SEED-Voken, Open-MAGVIT2: a CNN of its own without attention, and lookup-free codes.

The quantizer has no weights, and latents enter and leave it without a linear map: both maps become the identity.
"""

import re
from typing import Any

import torch
from torch import Tensor

from experiments.importers.averaged import averaged
from experiments.importers.cnn import Names, infer_cnn
from experiments.importers.family import Family, Options, Source, Weight, same
from lightning_modules.networks import MAGVIT2Config
from lightning_modules.tokenizer import TokenizerConfig

RULES = [
    (r"^encoder\.levels\.", "encoder.down."),
    (r"\.middle\.", ".mid_block."),
    (r"\.blocks\.", ".block."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.resample\.0\.", ".upsample.conv1."),
    (r"\.resample\.", ".downsample."),
]


def infer(source: Source, options: Options) -> dict[str, Any]:
    values = infer_cnn(source, Names("encoder.down.", "block"), options, name="vqgan")
    model = values["model"]
    del model["backbone"]["attention_resolutions"], model["backbone"]["middle_attention"]
    bits = model["backbone"]["latent_channels"]
    if bits > 30:
        raise ValueError(f"{source.origin}: 'encoder.conv_out.weight' has {bits} rows, which are no bits of token ids")
    model["backbone"]["name"] = "magvit2"
    # The published weights and temperature, and its code's offset in the logarithm; they change no reconstruction.
    quantizer = {"name": "lfq", "entropy_weight": 0.1, "temperature": 0.01, "entropy_eps": 1e-5}
    model |= {"codebook_size": 2**bits, "code_dim": bits, "quantizer": quantizer}
    return values


def depth_to_space(tensor: Tensor) -> Tensor:
    """Rows in the order (2 dy + dx) C + c of the public code -> c 4 + 2 dy + dx, that of torch's pixel_shuffle."""
    return tensor.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    if re.fullmatch(r"(pre|post)_quant\.(weight|bias)", key):
        identity = torch.eye(config.code_dim) if key.endswith("weight") else torch.zeros(config.code_dim)
        return Weight((), lambda: identity)
    if not key.startswith(("encoder.", "decoder.")):
        return None
    assert isinstance(config.backbone, MAGVIT2Config)
    last = len(config.backbone.channel_multipliers) - 1  # the decoder's levels are numbered from the finest there
    theirs = re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", key)
    theirs = re.sub(r"^decoder\.adaptive\.(\d+)", lambda match: f"decoder.adaptive.{last - int(match[1])}", theirs)
    for pattern, replacement in RULES:
        theirs = re.sub(pattern, replacement, theirs)
    return Weight((theirs,), depth_to_space) if ".upsample." in theirs else same(theirs)


OPEN_MAGVIT2 = Family(
    signature=("encoder.down.", "decoder.adaptive."),
    wrappers=("state_dict", "model"),
    dropped={"loss.": "LPIPS and discriminator"},
    infer=infer,
    weight=weight,
    adapt=averaged,
)
