"""Quantizers: plain modules on latents (..., d). `QUANTIZERS` names each with its configuration."""

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput
from lightning_modules.quantizers.ema import EMAConfig, EMAQuantizer
from lightning_modules.quantizers.factorized import FactorizedConfig, FactorizedQuantizer
from lightning_modules.quantizers.large_codebook import CodebookSource, LargeCodebook, LargeCodebookConfig
from lightning_modules.quantizers.nearest import nearest_code
from lightning_modules.quantizers.vq import VectorQuantizer, VQConfig

QUANTIZERS: dict[str, tuple[type[Quantizer], type[QuantizerConfig]]] = {
    "vq": (VectorQuantizer, VQConfig),
    "ema": (EMAQuantizer, EMAConfig),
    "factorized": (FactorizedQuantizer, FactorizedConfig),
    "large_codebook": (LargeCodebook, LargeCodebookConfig),
}

__all__ = [
    "QUANTIZERS",
    "CodebookSource",
    "EMAConfig",
    "EMAQuantizer",
    "FactorizedConfig",
    "FactorizedQuantizer",
    "LargeCodebook",
    "LargeCodebookConfig",
    "Quantizer",
    "QuantizerConfig",
    "QuantizerOutput",
    "VQConfig",
    "VectorQuantizer",
    "nearest_code",
]
