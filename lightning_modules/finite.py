"""A loss that is NaN or infinite stops the run with an error that names the step, the term and the likely origin."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

ADVICE = "lower optimizer.lr, use precision=32-true, or set optimizer.gradient_clip"


def check_finite(
    step: int, terms: Mapping[str, Tensor], images: Tensor | None = None, module: nn.Module | None = None
) -> None:
    """Checks the scalar `terms` of step number `step`; the host waits for the device once, however many there are.

    Raises FloatingPointError that names the step and the first term that is NaN or infinite. It blames the batch's
    `images` (B, ...) or the weights of `module` where these are not finite already; they are looked at only when a
    term is not.
    """
    if torch.stack([term.detach().float() for term in terms.values()]).isfinite().all():
        return
    name, term = next((name, term) for name, term in terms.items() if not torch.isfinite(term))
    raise FloatingPointError(f"step {step}: the {name} loss is {term.item()}{blame(images, module)}")


def blame(images: Tensor | None, module: nn.Module | None) -> str:
    """The end of the error message: the images or weights that are not finite, else what to try."""
    if images is not None and (bad := int((~torch.isfinite(images)).flatten(1).any(1).sum())):
        return f": {bad} of the {len(images)} images of its batch hold values that are not finite; look at the data"
    if module is not None and (name := first_not_finite(module.state_dict())):
        return f": the weights '{name}' are not finite already; {ADVICE}"
    return f"; {ADVICE}"


def first_not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The name of the first tensor with a value that is NaN or infinite; "" when there is none."""
    floating = ((name, tensor) for name, tensor in tensors.items() if tensor.is_floating_point())
    return next((name for name, tensor in floating if not torch.isfinite(tensor).all()), "")
