"""How a module's networks are run. Neither choice changes a number by more than rounding, nor a checkpoint."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lightning_modules.base import Module

MEMORY_FORMATS = ("contiguous", "channels_last")
COMPILE = ("none", "networks", "graphs")


def run_as(module: Module, memory_format: str, compile: str) -> None:
    """Sets how `module.hot_calls` are run, before optimizers and DDP see the weights.

    Args:
        memory_format: of MEMORY_FORMATS; images and feature maps take that of the convolutions' weights.
        compile: of COMPILE. networks: by torch.compile, for training; evaluation, whose batches differ, stays eager.
            graphs: nothing is done here; the trainer's callback `CapturedSteps` replays whole passes.
    """
    if memory_format == "channels_last":
        for network, _ in module.hot_calls(compiled=False):
            network.to(memory_format=torch.channels_last)
    if compile == "networks":
        for network, method in module.hot_calls(compiled=True):
            setattr(network, method, compiled_in_training(network, getattr(network, method)))


def compiled_in_training(network: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call`, compiled where `network` is in training mode. As a method it leaves the parameters their names."""
    compiled = torch.compile(call, dynamic=False)
    return lambda *inputs: (compiled if network.training else call)(*inputs)
