"""A loss that is NaN or infinite stops the run with an error that names the step, the term and the likely origin.

On a CPU it does so at once. On a GPU the host would wait at each loss until the device has come that far: there the
terms are copied in the background and looked at `LAG` losses later, by every rank at the same one. Before weights
are saved or validated all that is outstanding is looked at (`settle`), and the weights themselves (`FiniteWeights`). So
a run may make up to `LAG` more updates, which are lost anyway, but saves and reports nothing of them.
"""

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

ADVICE = "lower optimizer.lr, use precision=32-true, or set optimizer.gradient_clip"
LAG = 4  # losses; a step has two where a discriminator trains


class Outstanding(NamedTuple):
    """The terms of a loss, on their way from the device."""

    step: int
    names: list[str]
    values: Tensor  # (n,) on the CPU, not to be read before `arrival`
    arrival: Any  # a torch.cuda.Event, or None where they are there
    images: Tensor | None


_outstanding: WeakKeyDictionary[nn.Module, deque[Outstanding]] = WeakKeyDictionary()


def check_finite(
    step: int, terms: Mapping[str, Tensor], images: Tensor | None = None, module: nn.Module | None = None
) -> None:
    """Checks the scalar `terms` of step number `step`; on a GPU those of `LAG` calls ago for the same `module`.

    Raises FloatingPointError that names the step and the first term that is NaN or infinite. It blames the batch's
    `images` (B, ...) or, on a CPU, the weights of `module` where these are not finite already; they are looked at only
    when a term is not.
    """
    values = torch.stack([term.detach().float() for term in terms.values()])  # (n,)
    if values.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # a graph is recorded: there are no values yet
    if module is None or not comes_later(values):
        if not values.isfinite().all():
            refuse(step, list(terms), values, blame(images, module))
        return
    queue = _outstanding.setdefault(module, deque())
    on_host = values.to("cpu", non_blocking=True)  # pinned, where `values` are a GPU's
    arrival = torch.cuda.current_stream(values.device).record_event() if values.is_cuda else None
    queue.append(Outstanding(step, list(terms), on_host, arrival, images))
    if len(queue) > LAG:
        look(queue)


def comes_later(values: Tensor) -> bool:
    """Whether the host is ahead of the device that computes `values`."""
    return values.is_cuda


def settle(module: nn.Module) -> None:
    """Looks at all losses of `module` that are outstanding. Raises FloatingPointError as `check_finite`."""
    queue = _outstanding.get(module, ())
    while queue:
        look(queue)


def look(queue: Any) -> None:
    """Waits for the oldest loss of the queue and looks at it."""
    step, names, values, arrival, images = queue.popleft()
    if arrival is not None:
        arrival.synchronize()
    if not values.isfinite().all():
        queue.clear()  # what came after it is no news
        refuse(step, names, values, blame(images, None))  # the weights are those of a later step


def refuse(step: int, names: list[str], values: Tensor, reason: str) -> None:
    """Raises FloatingPointError for the first of `values` (n,) that is not finite."""
    name, value = next((n, v) for n, v in zip(names, values.tolist(), strict=True) if not abs(v) < float("inf"))
    raise FloatingPointError(f"step {step}: the {name} loss is {value}{reason}")


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
