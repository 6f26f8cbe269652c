"""FoundationVision/LlamaGen: its tokenizers VQ-8 and VQ-16, a CNN VQGAN with l2-normalised codes of 8 dimensions."""

from typing import Any

from experiments.importers.cnn import Names, cnn_weight, infer_cnn
from experiments.importers.family import Family, Options, Source, Weight, same
from lightning_modules.tokenizer import TokenizerConfig

RULES = [  # levels and middle are numbered as in this suite
    (r"\.levels\.", ".conv_blocks."),
    (r"\.blocks\.", ".res."),  # not conv_blocks, which a dot does not precede
    (r"\.attentions\.", ".attn."),
    (r"\.middle\.", ".mid."),
    (r"^(encoder.*)\.resample\.", r"\1.downsample."),
    (r"^(decoder.*)\.resample\.", r"\1.upsample."),
    (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.proj\.", ".proj_out."),
]


def infer(source: Source, options: Options) -> dict[str, Any]:
    # codebook_l2_norm is not in the weights: True is the public default, and what all published models have
    quantizer = {"name": "factorized", "l2_norm": True, "commitment_weight": 0.25, "codebook_weight": 1.0}
    model = {"name": "vqgan_fc", "quantizer": quantizer, **source.codebook()}
    return infer_cnn(source, Names("encoder.conv_blocks.", "res"), options, **model)


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    return same("quantize.embedding.weight") if key == "quantizer.codes" else cnn_weight(key, RULES)


LLAMAGEN = Family(
    signature=("encoder.conv_blocks.",),
    wrappers=("ema", "model", "state_dict"),  # the public scripts prefer averaged weights, too
    dropped={"quantize.codebook_used": "queue of the last 65,536 ids, of which their usage is counted"},
    infer=infer,
    weight=weight,
)
