"""A loss that is not a number stops the run, with its step and its name."""

import torch
from torch import Tensor


def check_finite(step: int, terms: dict[str, Tensor]) -> None:
    """Raises FloatingPointError that names the step and the first term that is NaN or infinite."""
    for name, term in terms.items():
        if not torch.isfinite(term):
            raise FloatingPointError(
                f"step {step}: the {name} loss is {term.item()}; lower optimizer.lr, use precision=32-true, or set "
                "optimizer.gradient_clip"
            )
