"""A model's networks as `experiments.costs` counts them: parameters, multiply-accumulates, memory, hours."""

from dataclasses import dataclass, field

from torch import Tensor, nn

TRAINED = 3.0  # forward passes that a training image costs: the backward pass counts as two


@dataclass
class Part:
    """One network, on the meta device or of fake tensors, and what it does in a training step.

    network: called with `inputs`, those of one image; None = not called.
    weights: holds its parameters; None: the network does, unless that is None too.
    macs: multiply-accumulates where they are not those of network(*inputs).
    passes: pairs (forward passes that a training image costs, the step from which on it does).
    once_a_step: not once an image, but once a step on each device.
    kept: how often the activations of one image are kept for the backward pass, in each phase of a step.
    frozen_in: a phase through which gradients only pass.
    kept_bytes, kept_limit: bytes that one image keeps beside these, and the most that all images do.
    is_apart: trained apart, no part of what papers count as the model.
    is_counted: its MACs are among those that papers print.
    encodes, decodes: needed to turn an image into tokens, tokens into an image.
    """

    name: str
    network: nn.Module | None = None
    inputs: tuple[Tensor, ...] = ()
    weights: nn.Module | None = None
    macs: int | None = None
    passes: tuple[tuple[float, int], ...] = ((TRAINED, 0),)
    once_a_step: bool = False
    kept: dict[str, int] = field(default_factory=lambda: {"step": 1})
    frozen_in: str = ""
    kept_bytes: int = 0
    kept_limit: int = 0
    is_apart: bool = False
    is_counted: bool = True
    encodes: bool = False
    decodes: bool = False

    @property
    def holder(self) -> nn.Module | None:
        return self.network if self.weights is None else self.weights
