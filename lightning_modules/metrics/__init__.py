"""Metrics as torchmetrics, whose states are reduced over the processes: several give the number of one."""

from lightning_modules.metrics.codebook import BatchUsage, CodebookUsage
from lightning_modules.metrics.extractors import FidelityExtractor, build_extractor
from lightning_modules.metrics.fidelity import Fidelity
from lightning_modules.metrics.reconstruction import ReconstructionMetrics
from lightning_modules.metrics.tokenizer import MetricsConfig, TokenizerMetrics

__all__ = [
    "BatchUsage",
    "CodebookUsage",
    "Fidelity",
    "FidelityExtractor",
    "MetricsConfig",
    "ReconstructionMetrics",
    "TokenizerMetrics",
    "build_extractor",
]
