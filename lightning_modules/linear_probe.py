"""Linear probe (paper A, Table 7 and Figure 3): a softmax layer on the averaged output of each block of a frozen VIM.

All blocks in one pass over the data: their features come from one forward pass of the frozen model, and their heads
are one stacked weight whose losses are summed, so that each is trained as if it were alone.

Shapes: n blocks, B images, T tokens of an image, D width, C classes.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.base import Layout, Module, ModuleConfig, Setting
from lightning_modules.checks import one_of, require
from lightning_modules.distributed import all_reduce_sum, mean_over_ranks
from lightning_modules.figures import accuracy_figure
from lightning_modules.networks.batch_norm import BatchNorm1d
from lightning_modules.optimizer import OptimizerConfig, build_optimizer, build_schedule, share_of_step
from lightning_modules.probe_features import (
    TOKENIZER_FEATURES,
    BlockFeatures,
    FrozenFeatures,
    PixelFeatures,
    TokenizerFeatures,
)
from lightning_modules.tokenizer import TokenizerConfig
from lightning_modules.vim import VIMConfig

HELDOUT, VAL = 0, 1  # the validation loaders, in their order


@dataclass
class LinearProbeConfig(ModuleConfig):
    """`features`: vim (A), or of the tokenizer: encoder (the backbone's output), latents (the encoder's output before
    quantization) or codes (the looked-up ones), each averaged over the image's tokens; or pixels, the image itself,
    which needs `upstream: null`. Codes and pixels are the controls that tell what VIM adds.

    `blocks`: of VIM, 1 is the first, A's best are 10 of 24 and 15 of 36; [] = all. `heldout`: share of the training
    images that no head is trained on and that choose the block whose test accuracy is reported.

    A states neither optimizer, rate, length, batch, augmentation nor any normalisation of the features. Taken here:
    Adam from zero weights with a cosine to 0, no weight decay. `normalize`: BatchNorm without affine parameters before
    each head, as in MAE's probe.
    """

    name: str = "linear_probe"
    features: str = "vim"
    blocks: list[int] = field(default_factory=list)
    heldout: float = 0.1
    normalize: bool = False
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-2, betas=[0.9, 0.999]))
    batch_size: ClassVar[int] = 1024
    max_steps: ClassVar[int] = 112_590  # 100 epochs of the 90 % of ImageNet that are not held out

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        one_of(self, "features", ("vim", *TOKENIZER_FEATURES, "pixels"))
        require(0 < self.heldout < 1, f"heldout={self.heldout} must be between 0 and 1: it chooses the block")
        are_different = len(set(self.blocks)) == len(self.blocks) and min(self.blocks, default=1) >= 1
        require(are_different, f"blocks={self.blocks} must be different numbers from 1 on")
        require(
            not self.blocks or self.features == "vim",
            f"blocks={self.blocks} are those of VIM, but model.features={self.features}",
        )
        require(
            not self.optimizer.gradient_clip,
            f"optimizer.gradient_clip={self.optimizer.gradient_clip}: a bound on the norm of all heads together would "
            "make each depend on the others; leave it at 0",
        )

    def check_upstream(self, upstream: ModuleConfig | None) -> None:
        """Raises ValueError when these features cannot be had of `upstream`."""
        if self.features == "pixels":
            require(upstream is None, "model.features=pixels needs no other model: set upstream=null")
            return
        upstream = self.required(upstream)
        if self.features != "vim":
            if not isinstance(upstream, TokenizerConfig):
                raise ValueError(
                    f"model.features={self.features} needs a tokenizer's recipe upstream, not {upstream.name}'s"
                )
            if self.features == "codes":
                upstream.check_tokens()
            return
        if not isinstance(upstream, VIMConfig):
            raise ValueError(
                f"model.features=vim needs a recipe of vim upstream, not {upstream.name}'s, whose features are "
                f"{', '.join(TOKENIZER_FEATURES)}"
            )
        if upstream.class_conditional and not upstream.label_dropout:
            raise ValueError(
                "the probed VIM must not see the label it is to tell: set upstream.model.class_conditional=false, or "
                'train it with upstream.model.label_dropout, which teaches it the start "no class" that is fed here'
            )
        if max(self.blocks, default=1) > (depth := upstream.gpt.resolved().blocks):
            raise ValueError(f"model.blocks={self.blocks}: the upstream VIM has {depth} blocks")

    @property
    def inputs(self) -> str:
        return "tokens" if self.features == "vim" else "images"


class LinearProbe(Module):
    """A linear layer for each block of `features`. Accuracies are top-1 in %.

    The heads start from zero: the loss is convex, and a head's start does not depend on which others there are.
    """

    config: LinearProbeConfig
    layout: ClassVar[Layout] = {
        "linear probe": {
            "loss, mean of the blocks": ["Multiline", ["loss/probe"]],
            "test accuracy by block, %": ["Multiline", ["val/probe/accuracy/block.*"]],
            "held-out accuracy by block, %": ["Multiline", ["val/probe/heldout/block.*"]],
            "test accuracy of the chosen block, %": ["Multiline", ["val/probe/accuracy$"]],
        }
    }
    progress_metric = "loss/probe"
    is_restorable = False  # the model below it is not in its checkpoint
    correct: Tensor  # (2, n) int64, hits of a validation
    seen: Tensor  # (2,) int64

    def __init__(self, config: LinearProbeConfig, features: FrozenFeatures, num_classes: int) -> None:
        super().__init__()
        self.config, self.features = config, features
        num_blocks = len(features.blocks)
        self.weight = nn.Parameter(torch.zeros(num_blocks, features.width, num_classes))
        self.bias = nn.Parameter(torch.zeros(num_blocks, 1, num_classes))
        self.norm = BatchNorm1d(num_blocks * features.width, affine=False) if config.normalize else nn.Identity()
        self.register_buffer("correct", torch.zeros(2, num_blocks, dtype=torch.int64), persistent=False)
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.num_seen = [0, 0]
        self.best_block = 0
        self.by_block: list[list[float]] = [[], []]  # % of the held-out and of the test images

    @classmethod
    def build(cls, config: LinearProbeConfig, setting: Setting) -> Self:
        if config.features == "vim":
            setting.upstream.expect_tokenizer(setting.tokenizer_digest)
            features: FrozenFeatures = BlockFeatures(setting.upstream.gpt, config.blocks)
        elif config.features == "pixels":
            features = PixelFeatures(setting.image_size)
        else:
            features = TokenizerFeatures(setting.upstream, config.features)
        return cls(config, features, setting.num_classes)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (n, B, C)."""
        model = self.features.model
        if next(model.parameters(), self.weight).device != self.device:
            model.to(self.device)
        with torch.no_grad():
            features = self.features(batch)  # (n, B, D)
        with torch.autocast(self.device.type, enabled=False):
            flat = self.norm(features.transpose(0, 1).flatten(1))  # (B, n D)
            features = flat.unflatten(1, (-1, self.features.width)).transpose(0, 1)  # (n, B, D)
            return torch.baddbmm(self.bias, features, self.weight)

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        """The mean cross-entropy of each head, (n,)."""
        logits, labels = self(batch), batch["label"]
        targets = labels.expand(len(logits), -1)  # (n, B)
        return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").mean(1)

    # ---- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        means = mean_over_ranks(losses.detach())
        if not torch.isfinite(means).all():
            raise FloatingPointError(
                f"step {self.trainer.global_step}: the losses of the blocks are {means.tolist()}; lower "
                "model.optimizer.lr, use precision=32-true, or set model.normalize=true"
            )
        self.log("loss/probe", means.mean(), prog_bar=True)
        # summed: each head has the gradient of its own loss
        return losses.sum() * share_of_step(self, batch_idx)

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.parameters(), self.config.optimizer)
        schedule = build_schedule(optimizer, self.config.optimizer, int(self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int) -> None:
        hits = self(batch).argmax(2) == batch["label"]  # (n, B)
        self.correct[dataloader_idx] += hits.sum(1)
        self.seen[dataloader_idx] += hits.shape[1]

    def on_validation_epoch_end(self) -> None:
        correct, seen = all_reduce_sum(self.correct), all_reduce_sum(self.seen)
        accuracy = 100 * correct / seen[:, None]  # (2, n)
        self.by_block, self.num_seen = accuracy.tolist(), seen.tolist()
        best = int(accuracy[HELDOUT].argmax())
        self.best_block = self.features.blocks[best]
        values: dict[str, Any] = {"probe/accuracy": accuracy[VAL, best], "probe/best_block": float(self.best_block)}
        for block, heldout, val in zip(self.features.blocks, *accuracy, strict=True):
            values |= {f"probe/accuracy/block{block:02}": val, f"probe/heldout/block{block:02}": heldout}
        self.log_dict(values)
        correct.zero_()
        seen.zero_()

    # ---- what is shown, and what a record needs

    def start_screen(self) -> dict[str, str]:
        features = self.features
        frozen = sum(p.numel() for p in features.model.parameters())
        return {
            "features": f"{features.name}, {features.summary.replace('-', ' ')}, {features.width} wide",
            "blocks": f"{len(features.blocks)}, each with a head for {self.bias.shape[-1]} classes",
            "held out": f"{self.config.heldout:.0%} of the training images",
            "parameters": f"{self.num_parameters:,} trained, {frozen:,} frozen",
        }

    def figures(self) -> dict[str, Any]:
        return {"accuracy by block": accuracy_figure(self)}

    @property
    def history(self) -> dict[str, list[float]]:
        """A-Figure 3: by block, not by time."""
        heldout, val = self.by_block
        return {"probe/accuracy": val, "probe/heldout": heldout}

    def protocols(self) -> dict[str, str]:
        """How each metric was made."""
        blocks = self.features.blocks
        how = f"linear-probe/{self.features.name}/{self.features.summary}"
        how += "/batchnorm" if self.config.normalize else ""
        val, heldout = f"{how}/top1/val/n{self.num_seen[VAL]}", f"{how}/top1/heldout-train/n{self.num_seen[HELDOUT]}"
        choice = f"best-of-{len(blocks)}-blocks-on-heldout-train-n{self.num_seen[HELDOUT]}"
        ids = {"probe/accuracy": f"{val}/{choice}", "probe/best_block": f"{how}/{choice}"}
        ids |= {f"probe/accuracy/block{block:02}": val for block in blocks}
        return ids | {f"probe/heldout/block{block:02}": heldout for block in blocks}
