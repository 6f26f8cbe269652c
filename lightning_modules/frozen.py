"""Trained networks that a model uses and never changes."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def freeze(network: Network) -> Network:
    """Returns `network` itself, in eval mode (no dropout, no batch statistics) and with no trainable parameter."""
    return network.eval().requires_grad_(False)


class FrozenModule(nn.Module):
    """Holds a network that must never be trained, switched to train mode, or saved with a checkpoint.

    It moves with `.to(...)` as any submodule does, and gradients flow through it to its input, but the module
    that holds it sees none of its parameters: nothing in `parameters()`, nothing in `state_dict()` (LPIPS
    would add 56 MB to every checkpoint), nothing for DDP to broadcast, and `.train()` does not reach it.
    """

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        if network is not None:
            freeze(network)
        self._hidden = (network,)  # nn.Module registers what is assigned to it, but not what lies in a tuple

    @property
    def network(self) -> Any:  # any nn.Module, with methods of its own
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenModule":
        if self.network is not None:
            self.network._apply(fn)
        return super()._apply(fn, recurse)
