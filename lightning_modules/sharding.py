"""FSDP (torch's second, `fully_shard`): each rank holds a part of every weight, gradient and optimizer state."""

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from lightning_modules.networks.gpt import GPT


def shard(gpt: GPT, mesh: DeviceMesh) -> None:
    """Block by block: a block's weights are whole only while it computes. The rest, the tables and the head, stays whole
    from the forward to the backward pass, because the loss reads the head's weight outside of `gpt.forward`."""
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(gpt, mesh=mesh, reshard_after_forward=False)


def is_sharded(gpt: GPT) -> bool:
    return isinstance(gpt, FSDPModule)


def whole(gpt: GPT) -> GPT:
    """A frozen copy with all weights on this rank, which needs the others no longer; all ranks call this together."""
    with torch.device("meta"):
        copy = GPT(gpt.config, gpt.vocab_size, gpt.grid_size, gpt.num_classes)
    weights = {name: full(value) for name, value in gpt.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return copy.eval().requires_grad_(False)


def full(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
