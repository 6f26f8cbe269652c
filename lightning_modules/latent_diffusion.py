"""LDM (Rombach et al. 2022) and DiT (Peebles and Xie 2023) on a tokenizer's latents, as in paper B (section 3.3, Tables
1, 4 and 5, appendix A).

With noise n, abar_t the schedule's product of 1 - beta up to step t, and x the encoder's un-quantized latents,

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) n,    L = ||n_theta(x_t, t, class) - n||^2,

to which DiT adds the bound on its learned variance. What is drawn is quantized once, at the end, and decoded.

The defaults are B's on ImageNet at f16 (Table 4, LC with 100,000 codes: LDM 8.36, DiT-XL/2 10.8). Where its paper, its
code and the original code differ, a note says what was taken.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from lightning_modules import diffusion
from lightning_modules.base import Setting
from lightning_modules.denoising import GaussianNoise
from lightning_modules.diffusion import Diffusion, DiffusionSamplingConfig, ScheduleConfig
from lightning_modules.distributed import own_random_numbers
from lightning_modules.latent_prior import LatentPrior, LatentPriorConfig, conditions
from lightning_modules.networks.dit import DiTConfig
from lightning_modules.networks.unet import UNet, UNetConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.parts import Part


@dataclass
class LatentDiffusionConfig(LatentPriorConfig):
    """What LDM and DiT share. `schedule`: of the noise that is added in training."""

    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    sampling: DiffusionSamplingConfig = field(default_factory=DiffusionSamplingConfig)

    def check_sampling(self, sampling: Any) -> None:
        super().check_sampling(sampling)
        sampling.check_schedule(self.schedule)


class LatentDiffusion(LatentPrior):
    """Predicts the noise at one of the schedule's times."""

    config: Any

    def __init__(self, config: LatentDiffusionConfig, setting: Setting) -> None:
        super().__init__(config, setting)
        self.diffusion = Diffusion(config.schedule)

    def losses(self, latents: Tensor, labels: Tensor | None, uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        t = (uniform * self.config.schedule.timesteps).long()  # (B,)
        return self.diffusion.losses(self.network, latents, labels, t, noise)

    def sample_latents(self, noise: GaussianNoise, labels: Tensor | None, sampling: DiffusionSamplingConfig) -> Tensor:
        return diffusion.sample(self.network, self.diffusion, sampling, noise, labels, self.network.no_class)


@dataclass
class LDMConfig(LatentDiffusionConfig):
    """Departs from B: its code drops no label in training, and yet guides away from "no class", which has then never
    been trained; here `label_dropout` is 0.1, as in DiT and SiT.
    """

    name: str = "ldm"
    unet: UNetConfig = field(default_factory=UNetConfig)
    # Appendix A: Adam 4.5e-4. B's code: AdamW at weight decay 0.01, whose rate, multiplied by devices and batch, is
    # 0.02 as published, with which no training succeeds.
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=4.5e-4, min_lr=4.5e-4, betas=[0.9, 0.999], weight_decay=0.01)
    )
    sampling: DiffusionSamplingConfig = field(
        default_factory=lambda: DiffusionSamplingConfig(guidance_scale=1.4)  # appendix A; the code's 1.6 at f16
    )
    batch_size: ClassVar[int] = 448
    max_steps: ClassVar[int] = 286_000  # 100 epochs of 2,860 steps

    def describe(self) -> dict[str, str]:
        widths = [multiplier * self.unet.channels for multiplier in self.unet.channel_multipliers]
        return {"model": f"{self.name}: U-Net of {' and '.join(map(str, widths))} channels"}


class LDM(LatentDiffusion):
    """The mean squared error of the noise, with a U-Net that is told the class by cross-attention."""

    config: LDMConfig
    objective = "noise-mse"

    @classmethod
    def build_network(cls, config: LDMConfig, setting: Setting) -> UNet:
        return UNet(config.unet, setting.code_dim, setting.grid_size, conditions(config, setting))

    def losses(self, latents: Tensor, labels: Tensor | None, uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        with own_random_numbers(self.device) if self.config.unet.dropout and self.training else nullcontext():
            return super().losses(latents, labels, uniform, noise)

    @classmethod
    def parts(cls, config: LDMConfig, setting: Setting) -> list[Part]:
        """LDM's own count leaves out the class table."""
        (part,) = super().parts(config, setting)
        children: Any = part.network
        part.weights = nn.ModuleList(child for name, child in children.named_children() if name != "classes")
        return [part, *([Part("class table", weights=children.classes)] if children.classes is not None else [])]


@dataclass
class DiTDiffusionConfig(LatentDiffusionConfig):
    """The mean squared error of the noise, and the variational bound, which trains the variance alone."""

    name: str = "dit"
    dit: DiTConfig = field(default_factory=DiTConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(name="linear", first=1e-4, last=0.02))
    # B's guidance, see GuidanceConfig.
    sampling: DiffusionSamplingConfig = field(
        default_factory=lambda: DiffusionSamplingConfig(
            sampler="ancestral", steps=250, guidance_scale=8.0, guided_channels=3
        )
    )

    def describe(self) -> dict[str, str]:
        return {"model": f"{self.name}: {self.dit.words}"}


class DiTDiffusion(LatentDiffusion):
    """DiT's transformer, which predicts noise and variance."""

    config: DiTDiffusionConfig
    objective = "noise-mse+bound"
