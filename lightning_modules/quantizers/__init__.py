"""Quantizers: plain modules on latents (..., d). `QUANTIZERS` names each with its configuration."""

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput
from lightning_modules.quantizers.ema import EMAConfig, EMAQuantizer
from lightning_modules.quantizers.factorized import FactorizedConfig, FactorizedQuantizer
from lightning_modules.quantizers.fsq import FSQ, FSQConfig
from lightning_modules.quantizers.ibq import IBQ, IBQConfig
from lightning_modules.quantizers.large_codebook import CodebookSource, LargeCodebook, LargeCodebookConfig
from lightning_modules.quantizers.lfq import LFQ, LFQConfig
from lightning_modules.quantizers.none import NoQuantizer, NoQuantizerConfig
from lightning_modules.quantizers.rotation import RotationConfig, RotationQuantizer
from lightning_modules.quantizers.search import nearest_code
from lightning_modules.quantizers.simvq import SimVQ, SimVQConfig
from lightning_modules.quantizers.vq import VectorQuantizer, VQConfig

QUANTIZERS: dict[str, tuple[type[Quantizer], type[QuantizerConfig]]] = {
    "vq": (VectorQuantizer, VQConfig),
    "ema": (EMAQuantizer, EMAConfig),
    "factorized": (FactorizedQuantizer, FactorizedConfig),
    "large_codebook": (LargeCodebook, LargeCodebookConfig),
    "simvq": (SimVQ, SimVQConfig),
    "rotation": (RotationQuantizer, RotationConfig),
    "fsq": (FSQ, FSQConfig),
    "lfq": (LFQ, LFQConfig),
    "ibq": (IBQ, IBQConfig),
    "none": (NoQuantizer, NoQuantizerConfig),
}

__all__ = [
    "FSQ",
    "IBQ",
    "LFQ",
    "QUANTIZERS",
    "CodebookSource",
    "EMAConfig",
    "EMAQuantizer",
    "FSQConfig",
    "FactorizedConfig",
    "FactorizedQuantizer",
    "IBQConfig",
    "LFQConfig",
    "LargeCodebook",
    "LargeCodebookConfig",
    "NoQuantizer",
    "NoQuantizerConfig",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "RotationConfig",
    "RotationQuantizer",
    "SimVQ",
    "SimVQConfig",
    "VQConfig",
    "VectorQuantizer",
    "nearest_code",
]
