"""Forward and backward as CUDA graphs: replayed by one launch, where Python would launch a thousand kernels.

A pass is a function of tensors and flags that computes losses and leaves gradients in `.grad`, changes no Python state
but a quantizer's `flags`, and never waits for the device. It is run as it is for some steps, in which libraries choose
their kernels, then captured, and from then on replayed. Flags decide its course, such as whether the game is on: each
combination of them is a graph of its own. Where one network is all that is called, `replay_training_calls` captures it
alone. https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

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
        # a loader's threads may use the device
        with casting_anew(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self.run(*static, *flags)
        return Captured(graph, static, outputs, [parameter.grad for parameter in self.parameters])


@contextmanager
def casting_anew() -> Iterator[None]:
    """For a capture: a weight that autocast has cast before would be read as it was then, at every replay."""
    keeps_casts = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(keeps_casts)


def replay_training_calls(network: nn.Module) -> None:
    """Forward and backward of `network` become replays in training, where all calls have tensors of the same shapes.

    They are captured at the first call, by torch. A trailing None is an argument left out. Evaluation runs as before.
    """
    plain = network.forward

    def capture_first(*inputs: Tensor | None) -> Any:
        if not (network.training and torch.is_grad_enabled()):
            return plain(*inputs)
        network.forward = plain
        samples = tuple(tensor.clone() for tensor in inputs if tensor is not None)  # a replay reads them
        with casting_anew():
            torch.cuda.make_graphed_callables(network, samples, allow_unused_input=True)
        replayed = network.forward
        network.forward = lambda *inputs: replayed(*(tensor for tensor in inputs if tensor is not None))
        return network(*inputs)

    network.forward = capture_first
