"""FSDP (torch's second, `fully_shard`): each rank holds a part of every weight, gradient and optimizer state."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_modules.frozen import freeze
from lightning_modules.networks.gpt import GPT


def shard(gpt: GPT, mesh: DeviceMesh) -> None:
    """Shards in place, block by block: a block's weights are whole only while it computes.

    The rest, tables and head, stays whole from the forward to the backward pass, because the loss reads the head's
    weight outside of `gpt.forward`.
    """
    for block in gpt.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(gpt, mesh=mesh, reshard_after_forward=False)


def is_sharded(gpt: GPT) -> bool:
    """Whether `shard` has been called on `module`."""
    return isinstance(gpt, FSDPModule)


def whole(gpt: GPT) -> GPT:
    """A frozen copy with all weights on this rank, to be used without the other ranks; all ranks call this together."""
    with torch.device("meta"):
        copy = GPT(gpt.config, gpt.vocab_size, gpt.grid_size, gpt.num_classes)
    weights = {name: full(value) for name, value in gpt.state_dict().items()}
    copy.load_state_dict(weights, assign=True)
    return freeze(copy)


def full(value: Tensor) -> Tensor:
    """The whole tensor of which each rank holds a part; any other tensor as it is. All ranks call this together."""
    return value.full_tensor() if isinstance(value, DTensor) else value


class ShardedAdafactor(torch.optim.Adafactor):
    """torch's Adafactor for sharded parameters, with the same numbers: it gathers one parameter after the other.

    The second moments are of the rows and columns of whole matrices (torch's class fails on a part of a matrix). Each
    rank keeps all of them, which are few numbers beside the weights.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            options = {key: group[key] for key in ("lr", "beta2_decay", "eps", "d", "weight_decay", "maximize")}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.step_whole(parameter, options)
        return loss

    def step_whole(self, parameter: Tensor, options: dict[str, Any]) -> None:
        assert isinstance(parameter, DTensor) and parameter.grad is not None
        whole = full(parameter).clone()
        whole.grad = full(parameter.grad)
        plain = torch.optim.Adafactor([whole], **options)
        plain.state[whole] = self.state[parameter]
        plain.step()
        self.state[parameter] = plain.state[whole]
        # Every rank has computed the same values; None: nothing is sent
        part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
