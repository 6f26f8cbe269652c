"""Gaussian diffusion in discrete time, as LDM and DiT use it: schedule, losses, samplers.

Equations: [D] Ho et al. 2020 (DDPM), [I] Nichol and Dhariwal 2021 (improved DDPM), [S] Song et al. 2021 (DDIM).
Shapes: B images, C latent channels, h w latent grid, T timesteps. t counts from 0 = nearly data to T - 1 = noise.
`alpha_bars` are [D]'s alpha-bar, [S]'s alpha. Tables are float64 on the CPU; images float32.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.checks import one_of, require
from lightning_modules.denoising import Draw, GuidanceConfig, Network, guided

HALF_BIN = 1 / 255  # of an 8-bit pixel on [-1, 1]; DiT keeps it for latents


@dataclass
class ScheduleConfig:
    """The defaults are LDM's; DiT's is linear, 1e-4, 0.02. "linear" elsewhere may mean either."""

    name: str = "sqrt_linear"  # linear in sqrt(beta), or "linear" in beta
    first: float = 0.0015
    last: float = 0.0195
    timesteps: int = 1000

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        one_of(self, "name", ("sqrt_linear", "linear"))
        ascend = 0 < self.first <= self.last < 1
        require(ascend, f"first={self.first} and last={self.last} must be 0 < first <= last < 1")
        require(self.timesteps >= 2, f"timesteps={self.timesteps} must be at least 2")

    def alpha_bars(self) -> Tensor:
        """(T,) float64: the products of 1 - beta."""
        power = 2 if self.name == "sqrt_linear" else 1
        ends = self.first ** (1 / power), self.last ** (1 / power)
        betas = torch.linspace(*ends, self.timesteps, dtype=torch.float64, device="cpu") ** power
        return (1 - betas).cumprod(0)


def at(table: Tensor, t: Tensor) -> Tensor:
    """Entries t (B,) of a table (T,), as (B, 1, 1, 1) float32."""
    return table.float().to(t.device)[t][:, None, None, None]


class Diffusion:
    """The tables of a schedule, or of the shorter process that keeps only some of its `timesteps`, ascending ([I] 19).

    The network is always told the timestep of the whole schedule. `end` is the alpha-bar where the process ends, 1 in
    the data.
    """

    def __init__(self, schedule: ScheduleConfig, timesteps: Tensor | None = None, end: float = 1.0) -> None:
        self.schedule = schedule
        self.timesteps = torch.arange(schedule.timesteps, device="cpu") if timesteps is None else timesteps
        self.alpha_bars = schedule.alpha_bars()[self.timesteps]
        self.previous = torch.cat([self.alpha_bars.new_full((1,), end), self.alpha_bars[:-1]])  # one step nearer data
        self.betas = 1 - self.alpha_bars / self.previous
        share = (1 - self.previous) / (1 - self.alpha_bars)
        # The mean of q(x_{t-1} | x_t, x_0) in x_0 and x_t, and the logarithm of its variance ([D] 7). That is -inf at
        # t = 0, where DiT takes the next one.
        self.mean_x0 = self.betas * self.previous.sqrt() / (1 - self.alpha_bars)
        self.mean_xt = share * (1 - self.betas).sqrt()
        variance = share * self.betas
        self.log_variance = torch.cat([variance[1:2], variance[1:]]).log()

    def sigmas(self, eta: float) -> Tensor:
        """(T,) float64: the noise of a DDIM step ([S] 16)."""
        return eta * ((1 - self.previous) / (1 - self.alpha_bars) * (1 - self.alpha_bars / self.previous)).sqrt()

    def noised(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """A draw x_t of q(x_t | x_0) ([D] 4) at t (B,) int64."""
        return at(self.alpha_bars.sqrt(), t) * x0 + at((1 - self.alpha_bars).sqrt(), t) * noise

    def denoised(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 out of x_t and its noise: [D] 4, solved."""
        return at((1 / self.alpha_bars).sqrt(), t) * x - at((1 / self.alpha_bars - 1).sqrt(), t) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Of q(x_{t-1} | x_t, x_0) ([D] 7)."""
        return at(self.mean_x0, t) * x0 + at(self.mean_xt, t) * x

    def log_variances(self, t: Tensor, ranged: Tensor | None) -> Tensor:
        """Of p(x_{t-1} | x_t): the posterior's, or, from outputs in [-1, 1], between that and log beta ([I] 15)."""
        low = at(self.log_variance, t)
        if ranged is None:
            return low
        share = (ranged + 1) / 2
        return share * at(self.betas.log(), t) + (1 - share) * low

    def losses(
        self, network: Network, x0: Tensor, labels: Tensor | None, t: Tensor, noise: Tensor
    ) -> dict[str, Tensor]:
        """Of latents x0 and `noise` (B, C, h, w) at t (B,) int64 in [0, T): terms (B,), of which the sum is trained.

        "noise" is the mean squared error of the noise ([D] 14), LDM's loss. Where the variance is learned there is also
        the "bound" ([I] 4 to 6), in bits per dimension. Both are DiT's hybrid loss, [I] 16: there the sum of the
        T = 1,000 terms has weight 0.001, so that one term at a random t has weight 1.
        """
        x = self.noised(x0, t, noise)
        predicted, ranged = split(network(x, self.timesteps.to(t.device)[t], labels), x0.shape[1])
        terms = {"noise": (predicted - noise).square().mean((1, 2, 3))}
        return terms if ranged is None else terms | {"bound": self.bound(x0, x, t, predicted.detach(), ranged)}

    def bound(self, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor, ranged: Tensor) -> Tensor:
        """One term of the variational bound (B,), in bits per dimension ([D] 5, [I] 4 to 6)."""
        mean = self.posterior_mean(self.denoised(x, t, noise), x, t)
        log_variance = self.log_variances(t, ranged)
        true_mean, true_log_variance = self.posterior_mean(x0, x, t), at(self.log_variance, t)
        difference = true_log_variance - log_variance
        squared = (true_mean - mean).square() * (-log_variance).exp()
        divergence = 0.5 * (difference.exp() - 1 - difference + squared)  # KL of two normal distributions
        nats = torch.where((t == 0)[:, None, None, None], bin_nll(x0, mean, log_variance), divergence)
        return nats.mean((1, 2, 3)) / math.log(2)


def split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The predicted noise (B, C, h, w), and the outputs for the variance where there are as many again."""
    output = output.float()
    return output[:, :channels], output[:, channels:] if output.shape[1] > channels else None


def bin_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability of the 8-bit value around x, in nats ([D] 13); beyond +-0.999 the bin is open."""

    def cdf(z: Tensor) -> Tensor:  # of the standard normal distribution, nearly
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    inverse = (-0.5 * log_variance).exp()
    above, below = cdf(inverse * (x - mean + HALF_BIN)), cdf(inverse * (x - mean - HALF_BIN))
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -inside.clamp(min=1e-12).log()


# ---- sampling


@dataclass
class DiffusionSamplingConfig(GuidanceConfig):
    """The defaults are LDM's and B's: DDIM, 200 steps, eta 1. DiT's are ancestral, 250 steps."""

    sampler: str = "ddim"  # or "ancestral"
    steps: int = 200
    eta: float = 1.0  # of "ddim": share of the ancestral noise; 0: none
    # Of "ddim". 1, LDM's: timesteps 1, 6, ..., 996, and the last step ends at timestep 0, which is not yet the data and
    # still gets noise. 0, textbook's and DiT's: timesteps 0, 5, ..., 995, and it ends at the data.
    offset: int = 1

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        super().check()
        one_of(self, "sampler", ("ddim", "ancestral"))
        require(self.steps >= 2, f"steps={self.steps} must be at least 2")
        require(0 <= self.eta <= 1, f"eta={self.eta} must be in [0, 1]")
        require(self.offset in (0, 1), f"offset={self.offset} is neither 0 nor 1")

    def check_schedule(self, schedule: ScheduleConfig) -> None:
        """Raises ValueError where the schedule cannot be walked in so many steps."""
        steps, total = self.steps, schedule.timesteps
        require(steps <= total, f"steps={steps} is more than the {total} timesteps of the schedule")
        if self.sampler == "ancestral":
            return
        stride = -(-total // steps)
        possible, last = -(-total // stride), (steps - 1) * stride + self.offset
        require(possible == steps, f"steps={steps}: equal strides give {possible} of {total} timesteps, not {steps}")
        require(last < total, f"steps={steps} with offset={self.offset} ends at {last}, beyond timestep {total - 1}")

    def timesteps(self, total: int) -> Tensor:
        """(steps,) int64, ascending: equal strides from `offset` on, or spread from 0 to the last."""
        if self.sampler == "ddim":
            return torch.arange(0, total, -(-total // self.steps), device="cpu") + self.offset
        spread = torch.linspace(0, total - 1, self.steps, dtype=torch.float64, device="cpu")
        return spread.round().long()

    def process(self, schedule: ScheduleConfig) -> Diffusion:
        """What is walked in sampling."""
        is_early = self.sampler == "ddim" and self.offset > 0
        end = float(schedule.alpha_bars()[0]) if is_early else 1.0
        return Diffusion(schedule, self.timesteps(schedule.timesteps), end)

    @property
    def id(self) -> str:
        """For protocol ids: how images were sampled."""
        ddim = f"-eta{self.eta:g}-offset{self.offset}" if self.sampler == "ddim" else ""
        return f"{self.sampler}{self.steps}{ddim}{self.guidance_id}{self.precision_id}"


@torch.inference_mode()
def sample(
    network: Network,
    diffusion: Diffusion,
    config: DiffusionSamplingConfig,
    noise: Draw,
    labels: Tensor | None,
    no_class: int,
) -> Tensor:
    """Latents (B, C, h, w) float32, neither clipped nor quantized; `noise` gives the start, then each step's.

    Raises:
        ValueError: the number of steps, or of guided channels, cannot be, or guidance has no labels.
    """
    config.check_schedule(diffusion.schedule)
    x = noise()
    config.check_channels(x.shape[1])
    process = config.process(diffusion.schedule)
    step = ddim_step if config.sampler == "ddim" else ancestral_step
    network = guided(network, no_class, config)
    for index in reversed(range(config.steps)):
        t = torch.full(x.shape[:1], int(process.timesteps[index]), device=x.device)
        x = step(process, index, x, network(x, t, labels), config.eta, noise)
    return x


def ancestral_step(process: Diffusion, index: int, x: Tensor, output: Tensor, eta: float, noise: Draw) -> Tensor:
    """A draw of p(x_{t-1} | x_t) ([D] algorithm 2); its mean at the last step. `eta` has no part in it."""
    t = torch.full(x.shape[:1], index, device=x.device)
    predicted, ranged = split(output, x.shape[1])
    mean = process.posterior_mean(process.denoised(x, t, predicted), x, t)
    return mean if index == 0 else mean + (0.5 * process.log_variances(t, ranged)).exp() * noise()


def ddim_step(process: Diffusion, index: int, x: Tensor, output: Tensor, eta: float, noise: Draw) -> Tensor:
    """[S] 12 and 16; it does not use a learned variance."""
    tables = (process.alpha_bars, process.previous, process.sigmas(eta))
    alpha, previous, sigma = (float(table[index]) for table in tables)
    predicted, _ = split(output, x.shape[1])
    x0 = (x - math.sqrt(1 - alpha) * predicted) / math.sqrt(alpha)
    x = math.sqrt(previous) * x0 + math.sqrt(1 - previous - sigma**2) * predicted
    return x + sigma * noise() if sigma else x
