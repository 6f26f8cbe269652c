"""zh460045050/VQGAN-LC: paper B's official code. Encoder and decoder have taming's names.

Its baselines are in the same class: without a projector (`--use_cblinear 0`) the table itself holds the codes, trained
by gradient or (`--quantizer_type ema`) by moving averages.
"""

from typing import Any

from experiments.importers.cnn import Names, infer_cnn
from experiments.importers.family import TRUE, Family, Options, Source, Weight, same
from experiments.importers.taming import taming_cnn_weight
from lightning_modules.tokenizer import TokenizerConfig

TABLE = "tok_embeddings.weight"
QUANTIZER = {
    "quantizer.table": same(TABLE),
    "quantizer.is_filled": TRUE,
    "quantizer.is_matched": TRUE,  # the projector is trained: the first batch must not rescale it
    "quantizer.projector.weight": same("codebook_projection.weight"),
    "quantizer.projector.bias": same("codebook_projection.bias"),
    "quantizer.codes": same(TABLE),
    "quantizer.counts": same("cluster_size"),
    "quantizer.sums": same("embed_avg"),
}


def infer(source: Source, options: Options) -> dict[str, Any]:
    codebook_size, feature_dim = source.shape(TABLE, 2)
    code_dim = source.shape("quant_conv.weight", 4)[0]
    if code_dim == 768:
        raise ValueError(f"{source.origin}: 768-dimensional codes, of latents that their code alone normalises")
    if source.has("codebook_projection.0."):
        what = "a projector of two layers ('codebook_projection.0.*', --use_cblinear 2)"
        raise ValueError(f"{source.origin}: {what}; only the paper's, one linear layer, can be imported")
    model: dict[str, Any] = {"codebook_size": codebook_size, "code_dim": code_dim}
    if source.has("codebook_projection."):
        model |= {"name": "vqgan_lc", "quantizer": {"name": "large_codebook", "feature_dim": feature_dim}}
    elif source.has("cluster_size"):
        model |= {"name": "vqgan_ema", "quantizer": {"name": "ema"}}
    else:
        model |= {"name": "vqgan", "quantizer": {"name": "vq", "commitment_weight": 1.0, "codebook_weight": 0.33}}
    return infer_cnn(source, Names("encoder.down.", "block"), options, **model)


def weight(key: str, config: TokenizerConfig) -> Weight | None:
    return QUANTIZER.get(key) or taming_cnn_weight(key, config)


VQGAN_LC = Family(
    signature=("encoder.down.", "tok_embeddings."),
    wrappers=("model", "state_dict"),
    dropped={"discriminator.": "discriminator", "perceptual_loss.": "LPIPS"},
    infer=infer,
    weight=weight,
)
