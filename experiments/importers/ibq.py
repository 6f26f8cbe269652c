"""TencentARC/SEED-Voken, IBQ: taming's network under its names, and codes of the largest dot product.

Its files hold the weights twice; published numbers are those of the averaged copy, which is taken where it is there.
"""

from typing import Any

from experiments.importers import taming
from experiments.importers.averaged import EMA, averaged
from experiments.importers.cnn import Names, infer_cnn
from experiments.importers.family import Family, Options, Source


def infer(source: Source, options: Options) -> dict[str, Any]:
    model = {"name": "vqgan", "quantizer": {"name": "ibq"}, **source.codebook()}
    return infer_cnn(source, Names("encoder.down.", "block"), options, **model)


IBQ = Family(
    signature=("encoder.down.", "quantize.embedding."),
    mark=EMA,  # without an averaged copy the keys are taming's
    wrappers=("state_dict", "model"),
    dropped={"loss.": "LPIPS and discriminator"},
    infer=infer,
    weight=taming.weight,
    adapt=averaged,
)
