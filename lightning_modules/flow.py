"""Flow matching along straight lines, as SiT's code (Ma et al. 2024) has it: path, loss, samplers.

Equations: [R] Liu et al. 2023 (rectified flow). Times t run from 0 = noise to 1 = data, as there; in diffusion.py and
in diffusers noise is at the large end, and diffusers' velocity has the other sign.
Shapes: B images, C latent channels, h w latent grid.
"""

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_modules.checks import at_least_one, one_of, require
from lightning_modules.denoising import Draw, GuidanceConfig, Network, guided


def noised(x1: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """x_t = t x_1 + (1 - t) noise, at t (B,) in [0, 1] ([R] 1)."""
    t = t[:, None, None, None]
    return t * x1 + (1 - t) * noise


def loss(network: Network, x1: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the velocity x_1 - noise, of each image (B,), at t (B,) in [0, 1] ([R] 1)."""
    velocity = network(noised(x1, t, noise), t, labels).float()
    return (velocity - (x1 - noise)).square().mean((1, 2, 3))


@dataclass
class FlowSamplingConfig(GuidanceConfig):
    """Heun, 125 steps of two calls, is what SiT's author advises; B's is dopri5 with SiT's tolerances.

    dopri5 chooses its steps, by one norm over the batch: an image then depends a little on its batch mates, so keep the
    batch size when comparing. It needs torchdiffeq, the extra `ode`.
    """

    sampler: str = "heun"  # or "euler", "dopri5"
    steps: int = 125  # of heun and euler
    atol: float = 1e-6  # of dopri5
    rtol: float = 1e-3

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        super().check()
        one_of(self, "sampler", ("euler", "heun", "dopri5"))
        at_least_one(self, "steps")
        require(self.atol > 0 and self.rtol > 0, f"atol={self.atol} and rtol={self.rtol} must be above 0")
        require(
            self.sampler != "dopri5" or find_spec("torchdiffeq") is not None,
            "sampler='dopri5' needs torchdiffeq: pip install '.[ode]', or take 'heun'",
        )

    @property
    def id(self) -> str:
        """For protocol ids: how images were sampled."""
        how = f"-atol{self.atol:g}-rtol{self.rtol:g}" if self.sampler == "dopri5" else str(self.steps)
        return f"{self.sampler}{how}{self.guidance_id}{self.precision_id}"


@torch.inference_mode()
def sample(network: Network, config: FlowSamplingConfig, noise: Draw, labels: Tensor | None, no_class: int) -> Tensor:
    """Latents (B, C, h, w) float32: the solution at 1 of dx/dt = v(x, t) from `noise` on ([R] 2.1).

    Raises:
        ValueError: more channels are to be guided than there are, or guidance has no labels.
    """
    x = noise()
    config.check_channels(x.shape[1])
    predict = guided(network, no_class, config)

    def velocity(t: float | Tensor, x: Tensor) -> Tensor:
        return predict(x, torch.full(x.shape[:1], float(t), device=x.device), labels).float()

    if config.sampler == "dopri5":
        from torchdiffeq import odeint  # an optional extra

        ends = torch.tensor([0.0, 1.0], device=x.device)  # every time asked for here is a state kept
        return odeint(velocity, x, ends, method="dopri5", atol=config.atol, rtol=config.rtol)[1]
    size = 1 / config.steps
    for step in range(config.steps):
        first = velocity(step * size, x)
        if config.sampler == "heun":
            first = (first + velocity((step + 1) * size, x + size * first)) / 2
        x = x + size * first
    return x
