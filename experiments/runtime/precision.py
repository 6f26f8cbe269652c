"""Exact float32 on GPUs, whose convolutions and products of matrices keep 10 bits of 23 otherwise (TF32)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
