"""What Lightning's trainer is told of a precision."""

from typing import Any

import torch

from experiments.config.experiment import RuntimeConfig
from lightning_modules.lightning_fixes import ScalerEach


def precision_options(precision: str, runtime: RuntimeConfig) -> dict[str, Any]:
    """Keyword arguments of `L.Trainer`, `plugins` among them."""
    if precision != "16-mixed":
        return {"precision": precision, "plugins": []}
    is_cpu = runtime.accelerator == "cpu" or not torch.cuda.is_available()
    return {"plugins": [ScalerEach("cpu" if is_cpu else "cuda")]}
