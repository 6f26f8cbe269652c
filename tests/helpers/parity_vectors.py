"""Parity vectors: numbers of public implementations, and the key lists of their full-size checkpoints.

`tests/parity/README.md` says what the files hold. They are part of the repository, so no test is skipped without them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

PARITY = Path(__file__).parents[1] / "parity"
VECTORS = PARITY / "vectors"
MANIFESTS = sorted((PARITY / "manifests").glob("*.json"))
REFUSED = sorted((PARITY / "manifests" / "refused").glob("*.json"))
Tensors = dict[str, Tensor]


def load_meta(name: str) -> dict[str, Any]:
    """Constructor arguments of the public module (`constructor`), its code's commit, and what each tensor means."""
    meta: dict[str, Any] = json.loads((VECTORS / name / "meta.json").read_text())
    return meta


def load_weights(name: str) -> Tensors:
    """The module's state dict under the public implementation's own key names; what is stored as float16 fits it."""
    weights = load_file(VECTORS / name / "weights.safetensors")
    return {key: x.float() if x.dtype == torch.float16 else x for key, x in weights.items()}


def load_io(name: str) -> Tensors:
    """The module's inputs, outputs and gradients."""
    return load_file(VECTORS / name / "io.safetensors")


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal within the rounding of a float32 network: the vectors' largest outputs are about 7."""
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)
