"""Forward and backward passes as CUDA graphs: replayed by one launch, where Python would launch a thousand kernels.

A pass is a function of tensors and flags that computes losses and leaves gradients in `.grad`, changes no Python state
and never waits for the device. It is run as it is for some steps, in which libraries choose their kernels, then
captured, and from then on replayed. Flags decide its course, such as whether the game is on: each combination of them
is a graph of its own. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

PLAIN_CALLS = 3  # of each combination of flags before it is captured


class Captured(NamedTuple):
    graph: Any
    inputs: list[Tensor]  # where a replay reads
    outputs: Any  # what it writes
    gradients: list[Tensor | None]  # of each parameter; a replay writes these too


class GraphedPass:
    """Calls `run`, and replays it once it has been captured. The gradients are set anew, not added up.

    What a replay returns is overwritten by the next one.

    Args:
        run: the pass; its arguments are tensors first, then flags.
        optimizer: whose parameters `run` gives gradients; they are None before a call.
        state: the Python state that decides the pass's course beside the flags. While it changes, nothing is captured.
    """

    def __init__(self, run: Callable[..., Any], optimizer: Any, state: Callable[[], Any]) -> None:
        self.run, self.state = run, state
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.last_state: Any = None
        self.plain_calls: dict[Any, int] = {}
        self.captured: dict[Any, Captured] = {}

    def __call__(self, *arguments: Tensor | bool) -> Any:
        inputs = [argument for argument in arguments if isinstance(argument, Tensor)]
        flags = arguments[len(inputs) :]
        key = (*flags, *(tensor.shape for tensor in inputs))
        if key not in self.captured:
            if (state := self.state()) != self.last_state:
                self.last_state = state
                self.plain_calls.clear()
            self.plain_calls[key] = self.plain_calls.get(key, 0) + 1
            if self.plain_calls[key] <= PLAIN_CALLS:
                return self.run(*arguments)
            self.captured[key] = self.capture(inputs, flags)
        graph, static, outputs, gradients = self.captured[key]
        for place, tensor in zip(static, inputs, strict=True):
            place.copy_(tensor)
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        graph.replay()
        return outputs

    def capture(self, inputs: list[Tensor], flags: tuple[Any, ...]) -> Captured:
        """Records one call. Its kernels do not run meanwhile, so that it changes neither weights nor statistics."""
        static = [tensor.detach().clone() for tensor in inputs]
        graph = torch.cuda.CUDAGraph()
        # A weight that autocast has cast before would be read as it was then, at every replay.
        keeps_casts = torch.is_autocast_cache_enabled()
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a loader's threads may use the device
                outputs = self.run(*static, *flags)
        finally:
            torch.set_autocast_cache_enabled(keeps_casts)
        return Captured(graph, static, outputs, [parameter.grad for parameter in self.parameters])
