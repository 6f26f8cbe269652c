"""What the samplers of diffusion and flow share: a network as a function, guidance, and noise for each image.

Shapes: B images, C latent channels, h w latent grid.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.checks import require
from lightning_modules.networks.sampling import PrecisionConfig, image_generators

# x (B, C, h, w), times (B,), labels (B,) or None -> prediction (B, C or 2 C, h, w)
Network = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Draw = Callable[[], Tensor]  # -> the next standard normal numbers (B, C, h, w)


@dataclass
class GuidanceConfig(PrecisionConfig):
    """Classifier-free guidance (Ho and Salimans 2022): prediction u + s (c - u), with class (c) and without (u).

    `guided_channels`: only the first ones are guided, the others stay c. DiT and SiT guide 3 of their 4, and B's
    scale 8 is for 3 of 8: by a rule of DiT's author about 3.6 on all.
    """

    guidance_scale: float = 1.0  # s; 1: none
    guided_channels: int = 0  # 0: all

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a number that cannot be."""
        super().check()
        require(math.isfinite(self.guidance_scale), f"guidance_scale={self.guidance_scale} must be finite")
        require(self.guided_channels >= 0, f"guided_channels={self.guided_channels} must be 0 (all) or more")

    def check_channels(self, channels: int) -> None:
        """Raises ValueError where more channels are to be guided than there are."""
        require(
            self.guided_channels <= channels,
            f"guided_channels={self.guided_channels} is more than the {channels} channels of the latents",
        )

    @property
    def guidance_id(self) -> str:
        """For protocol ids: "", "-guidance1.4" or "-guidance8-of3"."""
        if self.guidance_scale == 1:
            return ""
        return f"-guidance{self.guidance_scale:g}" + (f"-of{self.guided_channels}" if self.guided_channels else "")


def guided(network: Network, no_class: int, config: GuidanceConfig) -> Network:
    """The network with guidance: one call of 2 B images a step, or the network itself where the scale is 1.

    What it predicts beyond C channels, the variance, stays that of the class.
    """
    scale = config.guidance_scale
    if scale == 1:
        return network

    def predict(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        require(labels is not None, "guidance_scale other than 1 needs a model with classes, and labels")
        assert labels is not None
        rows = torch.cat([labels, torch.full_like(labels, no_class)])
        conditional, unconditional = network(torch.cat([x, x]), torch.cat([t, t]), rows).float().chunk(2)
        end = config.guided_channels or x.shape[1]
        base = unconditional[:, :end]
        return torch.cat([base + scale * (conditional[:, :end] - base), conditional[:, end:]], dim=1)

    return predict


class GaussianNoise:
    """A `Draw`: standard normal numbers for each image from a stream of its own, so that its batch does not matter.

    Each call returns the next (B, *shape), float32 on `device`. A CPU and a GPU draw different numbers.
    """

    def __init__(self, seed: int, image_ids: Sequence[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = image_generators(seed, image_ids, device)
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g, device=self.device) for g in self.generators])
