"""VIM (paper A, section 3.4): an autoregressive transformer over a tokenizer's codes; also paper B's GPT.

The configuration's defaults are A's VIM-Large on ImageNet (A-Table 6, FID 4.17), whose loss is the negative
log-likelihood of an image's tokens in raster order, after its class. Where A is silent, a note says what was taken.
B's GPT is `experiments/gpt_vim_imagenet.yaml`.

Shapes: B images, T tokens of an image, D width, V codes.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_modules.base import ModuleConfig, Setting
from lightning_modules.checks import require
from lightning_modules.distributed import mean_over_ranks, own_random_numbers
from lightning_modules.finite import check_finite
from lightning_modules.generator import Generator
from lightning_modules.lightning_fixes import logs_now
from lightning_modules.losses.tokens import token_loss
from lightning_modules.metrics.generation import GenerationConfig, GenerationMetrics
from lightning_modules.metrics.tokens import NATS_PER_BIT, BitsPerToken
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.networks.sampling import SamplingConfig
from lightning_modules.optimizer import (
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    decay_of_matrices,
    share_of_step,
)
from lightning_modules.parts import Part
from lightning_modules.sharding import is_sharded, shard, whole
from lightning_modules.tokenizer_config import TokenizerConfig
from lightning_modules.vim_parts import LAYOUT, drop_labels, gpt_parts, keep_tokens, pictures, rough_seconds, start_rows


@dataclass
class VIMConfig(ModuleConfig):
    """`label_dropout`: share of training labels replaced by "no class", for classifier-free guidance.

    `keep_tokens`: share of input tokens left as they are, the others become random ones (taming's and B's pkeep,
    0.8 in B's code; A has none). `encode_on_the_fly`: encode images anew at every step, as A; else read tokens.
    """

    name: str = "vim"
    gpt: GPTConfig = field(default_factory=lambda: GPTConfig(size="large", positions="2d", dropout=0.1))
    class_conditional: bool = True
    label_dropout: float = 0.0
    keep_tokens: float = 1.0
    encode_on_the_fly: bool = True
    # A 3.4: Adam with a first moment in int8 and a factorised second one (Adafactor's memory). Departs from A: AdamW,
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
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    batch_size: ClassVar[int] = 1024
    max_steps: ClassVar[int] = 450_000
    can_shard: ClassVar[bool] = True
    generates: ClassVar[bool] = True

    def check(self) -> None:
        """Raises ValueError for values that do not go together."""
        for name in ("label_dropout", "keep_tokens"):
            require(0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must be in [0, 1]")
        require(self.class_conditional or not self.label_dropout, "label_dropout needs model.class_conditional=true")
        require(
            self.sampling.guidance_scale == 1 or self.label_dropout > 0,
            f"sampling.guidance_scale={self.sampling.guidance_scale} needs a model that was trained without its label "
            "now and then: set model.label_dropout, for example to 0.1",
        )
        require(
            self.class_conditional or not self.generation.acceptance,
            "generation.acceptance needs model.class_conditional=true: a class to look like",
        )
        betas, default = self.optimizer.betas, type(self)().optimizer.betas
        require(
            self.optimizer.name != "adafactor" or betas == default,
            f"optimizer.betas={betas} has no effect on adafactor: set it to {default}",
        )

    def check_upstream(self, upstream: ModuleConfig | None) -> None:
        """Raises ValueError when `upstream` makes no tokens."""
        if not isinstance(upstream := self.required(upstream), TokenizerConfig):
            raise ValueError(f"model '{self.name}' needs a tokenizer's recipe upstream, not {upstream.name}'s")
        upstream.check_tokens()

    @property
    def inputs(self) -> str:
        return "tokens"

    @property
    def classifier(self) -> str:
        return self.generation.classifier if self.generation.acceptance else ""

    @property
    def reference(self) -> str:
        return self.generation.reference if self.generation.num_samples else ""

    @property
    def num_generated(self) -> int:
        return self.generation.num_samples

    def describe(self) -> dict[str, str]:
        return {"model": f"{self.name}: {self.gpt.resolved().words}"}


class VIM(Generator):
    """p(tokens | class) and the images that it generates.

    Under FSDP (runtime.strategy=fsdp) the transformer is sharded for training, and made whole on every rank for each
    validation.
    """

    config: VIMConfig
    layout = LAYOUT
    bits: BitsPerToken  # of a validation

    def __init__(
        self,
        config: VIMConfig,
        codebook_size: int,
        grid_size: tuple[int, int],
        num_classes: int,
        image_size: int,
        for_use: bool = False,
    ) -> None:
        """`for_use`: without metrics, which only training and evaluation need."""
        super().__init__()
        self.config = config
        self.gpt = GPT(config.gpt, codebook_size, grid_size, num_classes if config.class_conditional else 0)
        self.num_classes, self.image_size = num_classes, image_size
        self.num_conditions = self.gpt.num_classes  # that images can be asked of; 0 = unconditional
        if not for_use:
            self.generation = GenerationMetrics(config.generation, codebook_size, image_size)
        self.whole: tuple[GPT, ...] = ()  # during a validation under FSDP; in a tuple: not a submodule
        self.metric_protocols: dict[str, str] = {}

    @classmethod
    def build(cls, config: VIMConfig, setting: Setting) -> Self:
        sizes = setting.codebook_size, setting.grid_size, setting.num_classes, setting.image_size
        module = cls(config, *sizes, setting.for_use)
        if setting.tokenizer is not None:
            module.use_tokenizer(setting.tokenizer, setting.tokenizer_digest)
        return module

    @classmethod
    def parts(cls, config: VIMConfig, setting: Setting) -> list[Part]:
        classes = setting.num_classes if config.class_conditional else 0
        return gpt_parts(GPT(config.gpt, setting.codebook_size, setting.grid_size, classes))

    # ---- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        tokens = batch["tokens"]  # (B, T)
        labels = batch["label"] if self.config.class_conditional else None  # (B,)
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
        labels = batch["label"] if self.config.class_conditional else None
        hidden = self.network(tokens[:, :-1], labels)
        self.bits.update(token_loss(hidden, self.network.head.weight, tokens).per_token.view(tokens.shape))

    def on_validation_epoch_end(self) -> None:
        by_position, protocol = self.bits.compute()  # (T,)
        values = {"bits_per_token/val": by_position.mean().float()}
        self.metric_protocols = {"bits_per_token/val": protocol}
        self.bits_by_position = by_position.float().cpu()
        if self.tokenizer is not None and self.config.generation.num_samples and self.generation.has_reference:
            values |= self.generation.measure(self.sample_images(), self.classifier)
            self.metric_protocols |= self.generation.protocols(self.config.sampling.id)
        self.log_dict(values)

    def sample_images(self) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """This rank's share of the candidates, classes in turn, in batches for `GenerationMetrics.measure`."""
        config = self.config.generation
        numbers = range(self.global_rank, config.num_candidates, self.trainer.world_size)
        for first in range(0, len(numbers), config.batch_size):
            ids = list(numbers[first : first + config.batch_size])
            yield ids, *self.sample(ids, config.seed)

    # ---- what is shown, and what a record needs

    def start_screen(self) -> dict[str, str]:
        return start_rows(self.gpt) | super().start_screen()

    def rough_seconds(self, batch_size: int) -> float:
        return rough_seconds(self.gpt, batch_size)

    def figures(self) -> dict[str, Any]:
        return pictures(self)

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str, device: torch.device) -> None:
        self.generation.fidelity.to(device)
        self.generation.use_reference(folder, batches, key)

    def protocols(self) -> dict[str, str]:
        return dict(self.metric_protocols)

    # ---- checkpoints

    @property
    def sizes(self) -> dict[str, Any]:
        tokens = {"codebook_size": self.gpt.vocab_size, "grid_size": self.gpt.grid_size}
        return tokens | {"num_classes": self.num_classes, "image_size": self.image_size}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_digest"] = self.tokenizer_digest

    def on_restore(self, checkpoint: dict[str, Any], path: str) -> None:
        self.tokenizer_digest = checkpoint["tokenizer_digest"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError when the tokens are now those of another tokenizer."""
        self.expect_tokenizer(checkpoint["tokenizer_digest"])
