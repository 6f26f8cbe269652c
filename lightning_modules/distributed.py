"""What W processes need to give the numbers of one. Plain PyTorch, which costs a single process nothing.

It rests on two conventions. Rank r has the images r, r + W, r + 2 W, ... of every global batch and of the validation
set (`datamodules/base.py`), and every rank has equally many images of a batch. All ranks draw the same random numbers:
those of a batch are drawn for the global batch, and a rank takes its rows.

Shapes: B images of this rank, N of all ranks.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def rank() -> int:
    """This process's number in [0, world size); 0 when nothing is distributed."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """How many processes take part; 1 when nothing is distributed."""
    return dist.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    """Whether torch's process group is set up, even if of one process."""
    return dist.is_available() and dist.is_initialized()


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of `tensor` over all ranks, in place; itself when nothing is distributed."""
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


class _Sum(torch.autograd.Function):
    """torch.distributed.nn.functional.all_reduce, which torch 2.14 deprecates in favour of a private one."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_sum(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return _Sum.apply(grads[0])


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over all ranks; may be differentiated twice.

    Its gradient is that of the sum of all ranks' losses, which DDP averages, so that a statistic of the global batch
    can be part of a loss.
    """
    return _Sum.apply(tensor) / world_size() if world_size() > 1 else tensor


def mean_values(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scalars by name, detached: the means over all ranks, in one exchange. A NaN of one rank is a NaN on all."""
    values = {name: value.detach() for name, value in values.items()}
    if world_size() == 1:
        return values
    means = all_reduce_sum(torch.stack([value.float() for value in values.values()])) / world_size()
    return dict(zip(values, means, strict=True))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """For parameters that DDP leaves alone: one exchange of all gradients, after the backward pass."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if world_size() > 1 and gradients:
        flat = all_reduce_sum(torch.cat([gradient.flatten() for gradient in gradients])) / world_size()
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def without_exchange(model: Any) -> AbstractContextManager[None]:
    """Within this context backward passes exchange no gradients. `model` is a trainer's, wrapped in DDP or not."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def leave_out(module: nn.Module, part: str) -> None:
    """DDP neither averages the gradients of the submodule `part` nor waits for them: its own optimizer step does.

    Without it each of two optimizers' backward passes would exchange the gradients of both (find_unused_parameters).
    """
    names = [name for name, _ in module.named_parameters() if name.startswith(f"{part}.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def draw_rows(draw: Callable[[int], Tensor], rows: int) -> Tensor:
    """The `rows` rows of random numbers that this rank's images have in one draw for all ranks' images.

    `draw(n)` gives n rows; all ranks must have the same random state.
    """
    return draw(rows * world_size())[rank() :: world_size()]


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """Within this context each rank draws numbers of its own, as dropout should; the common stream advances by one.

    What is drawn afterwards is not what one process would draw: use it only where the result cannot equal that anyway.
    """
    if world_size() == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []), isolate_rng(include_cuda=False):
        torch.manual_seed(seed + rank())
        random.seed(seed + rank())  # timm's augmentations draw from all three
        np.random.seed((seed + rank()) % 2**32)
        yield


def gather_rows(part: Tensor) -> Tensor:
    """The rows (n, ...) of all ranks, rank by rank; ranks may have different n."""
    if not is_distributed():
        return part
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, part)
    return torch.cat(parts)


def in_order(gathered: Tensor) -> Tensor:
    """(N, ...) gathered rank by rank -> the same rows in the order of the data set; rank r had rows r, r + W, ..."""
    ordered, start = torch.empty_like(gathered), 0
    for index in range(world_size()):
        places = ordered[index :: world_size()]
        places.copy_(gathered[start : start + len(places)])
        start += len(places)
    return ordered
