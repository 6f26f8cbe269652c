"""VIM (paper A, section 4): an autoregressive transformer over a tokenizer's codes; also paper B's GPT.

The configuration's defaults are A's VIM-Large on ImageNet (A-Table 6, FID 4.17), whose loss is the negative
log-likelihood of an image's tokens in raster order, after its class. Where A is silent, a note says what was taken.
B's GPT is `experiments/gpt_vim_imagenet.yaml`.

Shapes: B images, T tokens of an image, D width, V codes.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_modules.base import Setting
from lightning_modules.checks import require
from lightning_modules.distributed import mean_over_ranks, own_random_numbers
from lightning_modules.finite import check_finite
from lightning_modules.lightning_fixes import logs_now
from lightning_modules.losses.tokens import token_loss
from lightning_modules.metrics.tokens import NATS_PER_BIT, BitsPerToken
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import SamplingConfig, generate
from lightning_modules.optimizer import (
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    decay_of_matrices,
    share_of_step,
)
from lightning_modules.parts import Part
from lightning_modules.prior import Prior, PriorConfig, drop_labels
from lightning_modules.sharding import is_sharded, shard, whole
from lightning_modules.vim_parts import LAYOUT, gpt_parts, keep_tokens, pictures


@dataclass
class VIMConfig(PriorConfig):
    """`keep_tokens`: share of input tokens left as they are, the others become random ones (taming's and B's pkeep,
    0.8 in B's code; A has none).
    """

    name: str = "vim"
    gpt: GPTConfig = field(default_factory=lambda: GPTConfig(size="large", positions="2d", dropout=0.1))
    keep_tokens: float = 1.0
    # A 4: Adam with a first moment in int8 and a factorised second one (Adafactor's memory). Departs from A: AdamW,
    # because torch's Adafactor has no first moment; its steps are lr times a parameter's own size and want another lr.
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=4.5e-4,
            min_lr=1e-5,
            betas=[0.9, 0.96],
            weight_decay=0.0,  # not stated, like the clipping
            warmup_steps=5000,
            decay_from=80_000,
            decay="exponential",
            gradient_clip=0.0,
        )
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: ClassVar[int] = 1024
    max_steps: ClassVar[int] = 450_000
    can_shard: ClassVar[bool] = True

    def check(self) -> None:
        """Raises ValueError for values that do not go together."""
        super().check()
        self.check_sampling(self.sampling)
        require(0 <= self.keep_tokens <= 1, f"keep_tokens={self.keep_tokens} must be in [0, 1]")
        betas, default = self.optimizer.betas, type(self)().optimizer.betas
        require(
            self.optimizer.name != "adafactor" or betas == default,
            f"optimizer.betas={betas} has no effect on adafactor: set it to {default}",
        )

    @property
    def inputs(self) -> str:
        return "tokens"

    def describe(self) -> dict[str, str]:
        return {"model": f"{self.name}: {self.gpt.resolved().words}"}


class VIM(Prior):
    """p(tokens | class) and the images that it generates.

    Under FSDP (runtime.strategy=fsdp) the transformer is sharded for training, and made whole on every rank for each
    validation.
    """

    config: VIMConfig
    layout = LAYOUT
    bits: BitsPerToken  # of a validation

    def __init__(self, config: VIMConfig, setting: Setting) -> None:
        classes = setting.num_classes if config.class_conditional else 0
        gpt = GPT(config.gpt, setting.codebook_size, setting.grid_size, classes)
        super().__init__(config, setting)
        self.gpt = gpt
        self.whole: tuple[GPT, ...] = ()  # during a validation under FSDP; in a tuple: not a submodule

    @classmethod
    def parts(cls, config: VIMConfig, setting: Setting) -> list[Part]:
        classes = setting.num_classes if config.class_conditional else 0
        return gpt_parts(GPT(config.gpt, setting.codebook_size, setting.grid_size, classes))

    # ---- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = batch["tokens"]  # (B, T)
        labels = self.labels_of(batch)  # (B,)
        if labels is not None and self.config.label_dropout:
            labels = drop_labels(labels, self.config.label_dropout, self.gpt.no_class)
        inputs = keep_tokens(tokens[:, :-1], self.config.keep_tokens, self.gpt.vocab_size)
        with own_random_numbers(self.device) if self.config.gpt.dropout else nullcontext():
            hidden = self.gpt(inputs, labels)  # (B, T, D)
        loss = token_loss(hidden, self.gpt.head.weight, tokens).mean
        mean = mean_over_ranks(loss.detach())
        check_finite(self.global_step, {"token": mean}, module=self)
        if logs_now(self):
            self.log_dict({"loss/generator": mean, "bits_per_token/train": mean / NATS_PER_BIT}, prog_bar=True)
        return loss * share_of_step(self, batch_idx)

    def configure_model(self) -> None:
        if self.device_mesh is not None and not is_sharded(self.gpt):
            shard(self.gpt, self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(decay_of_matrices(self.gpt, self.config.optimizer), self.config.optimizer)
        schedule = build_schedule(optimizer, self.config.optimizer, int(self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation

    @property
    def network(self) -> GPT:
        """The transformer to evaluate: ranks may call it independently of each other."""
        return self.whole[0] if self.whole else self.gpt

    def on_validation_start(self) -> None:
        self.bits = BitsPerToken(self.gpt.num_tokens, self.device)
        if is_sharded(self.gpt):
            self.whole = (whole(self.gpt),)

    def on_validation_end(self) -> None:
        self.whole = ()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        tokens = batch["tokens"]
        hidden = self.network(tokens[:, :-1], self.labels_of(batch))
        self.bits.update(token_loss(hidden, self.network.head.weight, tokens).per_token.view(tokens.shape))

    def on_validation_epoch_end(self) -> None:
        by_position, protocol = self.bits.compute()  # (T,)
        values = {"bits_per_token/val": by_position.mean().float()}
        self.metric_protocols = {"bits_per_token/val": protocol}
        self.bits_by_position = by_position.float().cpu()
        self.log_dict(values | self.measure_generation())

    def draw(self, ids: list[int], labels: Tensor | None, sampling: SamplingConfig, seed: int) -> Tensor:
        with sampling.autocast(self.device):
            return generate(self.network, ids, labels, sampling, seed)

    # ---- what is shown

    def rough_loss(self, num_images: int) -> Tensor:
        tokens = torch.zeros(num_images, self.gpt.num_tokens, dtype=torch.long, device=self.device)
        return token_loss(self.gpt(tokens[:, :-1]), self.gpt.head.weight, tokens).mean

    def figures(self) -> dict[str, Any]:
        return pictures(self)
