"""What models of a tokenizer's latents share: LDM and DiT (latent_diffusion.py) and SiT (flow_matching.py).

They model the encoder's un-quantized output, as paper B's section 3.3 says and its code does; what they draw is
quantized once, at the end, and decoded. So the codebook acts only there.

Shapes: B images, d dimensions of a latent, h x w places, T = h * w tokens.
"""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_modules import prior
from lightning_modules.base import Layout, ModuleConfig, Setting
from lightning_modules.checks import one_of, require
from lightning_modules.denoising import GaussianNoise, GuidanceConfig
from lightning_modules.distributed import all_reduce_sum, draw_rows, mean_over_ranks, mean_values, rank, world_size
from lightning_modules.figures import sample_grid
from lightning_modules.finite import check_finite
from lightning_modules.lightning_fixes import logs_now
from lightning_modules.networks.dit import DiT
from lightning_modules.optimizer import OptimizerConfig, build_optimizer, build_schedule, share_of_step
from lightning_modules.parts import Part
from lightning_modules.prior import Prior, PriorConfig, drop_labels

STORED = ("float32", "float16")
GOLDEN = 0.6180339887498949  # multiples of it, without their whole part, are spread evenly over [0, 1)
VALIDATION_SEED = 0  # of the noise of validation images


@dataclass
class LatentPriorConfig(PriorConfig):
    """`latents_stored`: float32 or float16, what latents that are encoded once are kept as.

    `scale_latents`: divide latents by the deviation of the first training batch (LDM's scale_by_std); B has no scaling
    and no centring, in paper and code.
    """

    label_dropout: float = 0.1  # of DiT's and SiT's code, B's too; its paper is silent
    latents_stored: str = "float32"
    scale_latents: bool = False
    # Appendix A: Adam 4.5e-4 for all three. Taken for DiT and SiT: 1e-4, of B's code and of both original ones.
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=1e-4, min_lr=1e-4, betas=[0.9, 0.999], weight_decay=0.0)
    )

    sampling: GuidanceConfig = field(default_factory=GuidanceConfig)
    batch_size: ClassVar[int] = 256  # DiT's and SiT's
    max_steps: ClassVar[int] = 400_000

    def check(self) -> None:
        super().check()
        self.check_sampling(self.sampling)
        one_of(self, "latents_stored", STORED)

    def check_upstream(self, upstream: ModuleConfig | None) -> None:
        super().check_upstream(upstream)
        guided, channels = self.sampling.guided_channels, getattr(upstream, "code_dim", 0)
        require(
            guided <= channels,
            f"model.sampling.guided_channels={guided} is more than the {channels} channels of the latents",
        )

    @property
    def inputs(self) -> str:
        return "latents"


class LatentPrior(Prior):
    """p(latents | class) by a network that removes noise, and the images that it generates.

    Its loss at a time t is a mean over the numbers of a latent; times and noise are drawn for the global batch.
    """

    scale: Tensor  # scalar, what latents are divided by
    objective: str  # of protocol ids
    layout: ClassVar[Layout] = {
        "latents": {
            "loss": ["Multiline", ["loss/generator", "val/loss"]],
            "mean and deviation of latents": [
                "Multiline",
                ["val/latents/mean", "val/latents/deviation", "val/latents/deviation/generated"],
            ],
        },
        **prior.LAYOUT,
    }

    def __init__(self, config: Any, setting: Setting) -> None:
        network = self.build_network(config, setting)
        super().__init__(config, setting)
        self.network, self.code_dim = network, setting.code_dim
        self.register_buffer("scale", torch.ones(()))
        self.drawn = torch.zeros(3, device="cpu").double()  # of the latents: how many numbers, sum, sum of squares

    @classmethod
    def build_network(cls, config: Any, setting: Setting) -> nn.Module:
        """(noisy latents (B, d, h, w), times (B,), labels (B,) or None) -> prediction (B, d or 2 d, h, w): a DiT."""
        return DiT(config.dit, setting.code_dim, setting.grid_size, conditions(config, setting))

    @abstractmethod
    def losses(self, latents: Tensor, labels: Tensor | None, uniform: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Terms (B,) whose sum is minimised, of latents (B, d, h, w), `uniform` (B,) in [0, 1) and noise like them."""

    @abstractmethod
    def sample_latents(self, noise: GaussianNoise, labels: Tensor | None, sampling: Any) -> Tensor:
        """Latents (B, d, h, w), still scaled."""

    # ---- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        latents, labels = batch["latents"].float(), self.labels_of(batch)  # (B, d, h, w), (B,)
        if self.config.scale_latents and self.global_step == 0 and batch_idx == 0:
            self.scale.copy_(deviation(*mean_over_ranks(torch.stack([latents.mean(), latents.square().mean()]))))
        if labels is not None and self.config.label_dropout:
            labels = drop_labels(labels, self.config.label_dropout, self.network.no_class)
        uniform = draw_rows(lambda n: torch.rand(n, device=latents.device), len(latents))
        noise = draw_rows(lambda n: torch.randn(n, *latents.shape[1:], device=latents.device), len(latents))
        terms = {name: term.mean() for name, term in self.losses(latents / self.scale, labels, uniform, noise).items()}
        loss = torch.stack([*terms.values()]).sum()
        means = mean_values(terms | {"mean": latents.mean(), "square": latents.square().mean()})
        mean, square = means.pop("mean"), means.pop("square")
        check_finite(self.global_step, means, latents, self)
        if logs_now(self):
            self.log("loss/generator", torch.stack([*means.values()]).sum(), prog_bar=True)
            self.log_dict({f"loss/{name}": value for name, value in means.items() if len(means) > 1})
            self.log_dict({"latents/mean": mean, "latents/deviation": deviation(mean, square)})
        return loss * share_of_step(self, batch_idx)

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        optimizer = build_optimizer(parameters, self.config.optimizer)
        schedule = build_schedule(optimizer, self.config.optimizer, int(self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation: each image at one time and with noise of its own, whatever the batch size

    def on_validation_start(self) -> None:
        self.sums: dict[str, Tensor] = {}  # over this rank's images
        self.num_images = 0

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        latents = batch["latents"].float()
        numbers = [(self.num_images + place) * world_size() + rank() for place in range(len(latents))]
        self.num_images += len(latents)
        uniform = torch.tensor([number * GOLDEN % 1 for number in numbers], device=latents.device)
        noise = GaussianNoise(VALIDATION_SEED, numbers, tuple(latents.shape[1:]), latents.device)()
        values = self.losses(latents / self.scale, self.labels_of(batch), uniform.clamp(max=1 - 2**-24), noise)
        flat = latents.flatten(1)
        for name, value in (values | {"mean": flat.mean(1), "square": flat.square().mean(1)}).items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device="cpu")) + value.cpu().double().sum()

    def on_validation_epoch_end(self) -> None:
        totals = torch.stack([torch.tensor(self.num_images, device="cpu").double(), *self.sums.values()])
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # MPS has no float64
        number, *sums = all_reduce_sum(totals.to(self.device, dtype)).tolist()
        means = {name: value / number for name, value in zip(self.sums, sums, strict=True)}
        mean, square = means.pop("mean"), means.pop("square")
        values = {"loss/val": sum(means.values())}
        values |= {f"loss/{name}/val": value for name, value in means.items() if len(means) > 1}
        moments = {"latents/mean": mean, "latents/deviation": max(0.0, square - mean**2) ** 0.5}
        self.metric_protocols = dict.fromkeys(values, f"{self.objective}/one-time-an-image/n{int(number)}")
        self.metric_protocols |= dict.fromkeys(moments, f"encoder-output-of-val-images/n{int(number)}")
        measured = {name: torch.tensor(value) for name, value in (values | moments).items()}
        self.log_dict(measured | self.measure_generation())

    # ---- generation

    def measure_generation(self) -> dict[str, Tensor]:
        """As of any prior, and the deviation of what was drawn: far from the latents' own, the sampling diverges."""
        self.drawn.zero_()
        values = super().measure_generation()
        if values:
            dtype = torch.float32 if self.device.type == "mps" else torch.float64
            count, total, squares = all_reduce_sum(self.drawn.to(self.device, dtype))
            values["latents/deviation/generated"] = deviation(total / count, squares / count)
            number = self.config.generation.num_candidates
            self.metric_protocols["latents/deviation/generated"] = f"drawn/n{number}/{self.config.sampling.id}"
        return values

    @torch.inference_mode()
    def draw(self, ids: list[int], labels: Tensor | None, sampling: Any, seed: int) -> Tensor:
        assert self.tokenizer is not None, "use_tokenizer comes first"
        noise = GaussianNoise(seed, ids, (self.code_dim, *self.grid_size), self.device)
        training = self.network.training
        self.network.eval()
        try:
            with sampling.autocast(self.device):
                latents = self.sample_latents(noise, labels, sampling).float() * self.scale  # (B, d, h, w)
        finally:
            self.network.train(training)
        sums = torch.stack([latents.new_tensor(latents.numel()), latents.sum(), latents.square().sum()])
        self.drawn += sums.cpu()
        return self.tokenizer.to(self.device).quantizer(latents.movedim(1, -1)).indices.flatten(1)  # (B, T)

    # ---- how it is counted and shown, and what a checkpoint needs

    @classmethod
    def parts(cls, config: Any, setting: Setting) -> list[Part]:
        """MACs are of one image at one time."""
        network = cls.build_network(config, setting)
        labels = [torch.zeros(1, dtype=torch.long)] if config.class_conditional else []
        inputs = (torch.zeros(1, setting.code_dim, *setting.grid_size), torch.zeros(1), *labels)
        return [Part("network", network, inputs)]

    def start_screen(self) -> dict[str, str]:
        rows, columns = self.grid_size
        return {"latents": f"{self.code_dim} x {rows} x {columns}"} | super().start_screen()

    def rough_loss(self, num_images: int) -> Tensor:
        latents = torch.zeros(num_images, self.code_dim, *self.grid_size, device=self.device)
        terms = self.losses(latents, None, latents.new_zeros(num_images), torch.ones_like(latents))
        return torch.stack([*terms.values()]).sum()

    def figures(self) -> dict[str, Any]:
        return {} if self.tokenizer is None else {"samples, classes in turn": sample_grid(self, prior.NUM_SHOWN)}

    @property
    def sizes(self) -> dict[str, Any]:
        return super().sizes | {"code_dim": self.code_dim}


def deviation(mean: Tensor, square: Tensor) -> Tensor:
    """Of numbers with this mean and this mean square."""
    return (square - mean.square()).clamp(min=0).sqrt()


def conditions(config: LatentPriorConfig, setting: Setting) -> int:
    """Classes that the network is told; 0 = unconditional."""
    return setting.num_classes if config.class_conditional else 0
