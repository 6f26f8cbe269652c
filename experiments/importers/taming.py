"""CompVis/taming-transformers: `VQModel`, the CNN VQGAN, whose encoder and decoder paper B's official code copies."""

import re
from typing import Any

from experiments.importers.cnn import Names, cnn_weight, infer_cnn
from experiments.importers.family import Family, Options, Source, Weight, same
from lightning_modules.networks import CNNConfig
from lightning_modules.tokenizer import TokenizerConfig

RULES = [
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^(encoder.*)\.resample\.", r"\1.downsample."),
    (r"^(decoder.*)\.resample\.", r"\1.upsample."),
    (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."),
    (r"\.middle\.2\.", ".mid.block_2."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.proj\.", ".proj_out."),
]


def taming_cnn_weight(key: str, config: TokenizerConfig) -> Weight | None:
    """As `cnn_weight`. The decoder's levels are numbered coarsest first in this suite, finest first in taming's."""
    assert isinstance(config.backbone, CNNConfig)
    last = len(config.backbone.channel_multipliers) - 1
    key = re.sub(r"^decoder\.levels\.(\d+)", lambda match: f"decoder.up.{last - int(match[1])}", key)
    return cnn_weight(key, RULES)


def infer(source: Source, options: Options) -> dict[str, Any]:
    if source.has("quantize.embed."):
        raise ValueError(
            f"{source.origin}: a Gumbel-softmax tokenizer ('quantize.embed.*'); only those that look up the nearest "
            "code ('quantize.embedding.weight') can be imported"
        )
    # legacy=True, taming's default: beta = 0.25 multiplies the codebook term. It changes no reconstruction.
    quantizer = {"name": "vq", "commitment_weight": 1.0, "codebook_weight": 0.25}
    model = {"name": "vqgan", "quantizer": quantizer, **source.codebook()}
    return infer_cnn(source, Names("encoder.down.", "block"), options, **model)


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    return same("quantize.embedding.weight") if key == "quantizer.codes" else taming_cnn_weight(key, config)


TAMING = Family(
    signature=("encoder.down.", "quantize."),
    wrappers=("state_dict", "model"),
    dropped={"loss.": "LPIPS and discriminator"},
    infer=infer,
    weight=weight,
)
