"""What Lightning's trainer is told of a precision; and exact float32, whatever it is.

GPUs keep 10 bits of float32's 23 in convolutions, and in products of matrices where they are told to (TF32).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def full_float32() -> Iterator[None]:
    """Within this context float32 is float32 on every device: a metric or a codebook does not depend on where it is
    computed, up to rounding. Autocast is left alone."""
    saved = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        set_precision("highest", False)
        yield
    finally:
        set_precision(*saved)


def set_precision(matmul: str, convolutions: bool) -> None:
    """By the older of torch's two ways: after the newer one, what still reads the older raises an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*new API settings to control TF32")
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolutions
