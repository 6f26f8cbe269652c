"""Token classifier (paper B, section 4.2): what a ViT can tell of an image from its tokens.

B fine-tunes three ViT-B, pretrained by MAE, on the images as three tokenizers leave them: 75.7 % top-1 on ImageNet for
LC, 73.8 for EMA, 74.1 for FC. It does not say what the ViT is fed, nor how it is trained, and has published no code of
it. Here both readings are to be had. The defaults are MAE's fine-tuning (He et al. 2022, table 9) of its ViT-B.

Shapes: B images, C classes, d dimensions of a code, h x w tokens, H = W pixels.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import normalize

from lightning_modules.base import Layout, Module, ModuleConfig, Setting
from lightning_modules.checks import at_least_one, one_of, require
from lightning_modules.distributed import all_reduce_sum, mean_over_ranks, own_random_numbers
from lightning_modules.finite import check_finite
from lightning_modules.frozen import FrozenModule
from lightning_modules.lightning_fixes import logs_now
from lightning_modules.networks.batch_norm import BatchNorm2d
from lightning_modules.networks.timm_vit import build_vit, layer_groups, load_pretrained, pretrained_vit
from lightning_modules.optimizer import OptimizerConfig, build_optimizer, build_schedule, share_of_step
from lightning_modules.parts import Part
from lightning_modules.tokenizer_config import TokenizerConfig

READS = ("codes", "reconstructions", "images")


@dataclass
class TokenClassifierConfig(ModuleConfig):
    """`reads`: codes (B 3.3: the map of code vectors; a new linear layer, d -> width, stands in place of the patch
    embedding), reconstructions (B 4.2: the decoded images, cut into patches) or images (untouched, without a tokenizer:
    the ceiling of both; needs `upstream: null`).

    `pretrained`: a timm ViT whose weights are the start, their positions interpolated to the grid here; "" = from
    scratch. `layer_decay`: the rate of block i of n is lr * layer_decay^(n + 1 - i), of the head lr, of what is below
    the blocks lr * layer_decay^(n + 1). `encode_on_the_fly`: encode augmented images at every step, instead of reading
    tokens that were made once.

    Erasing and mixing change what the ViT is fed, so also the map of codes, whose dimensions are normalised before by
    BatchNorm without weights.
    """

    name: str = "token_classifier"
    reads: str = "codes"
    pretrained: str = "vit_base_patch16_224.mae"
    dims: list[int] = field(default_factory=lambda: [12, 12, 768])  # blocks, heads, width
    patch_size: int = 16  # of reconstructions and images
    drop_path: float = 0.1  # of the last block; growing from 0 at the first
    layer_decay: float = 0.65
    label_smoothing: float = 0.1
    mixup: float = 0.8  # alpha, 0 = off; of each batch either images are mixed, or boxes of them exchanged
    cutmix: float = 1.0  # alpha, 0 = off
    erasing: float = 0.25  # share of images of which a box becomes noise
    encode_on_the_fly: bool = True
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(
            lr=2e-3, min_lr=1e-6, betas=[0.9, 0.999], weight_decay=0.05, warmup_steps=6255
        )
    )
    batch_size: ClassVar[int] = 1024
    max_steps: ClassVar[int] = 125_100  # 100 epochs of 1,251 steps; the warm-up takes 5

    def check(self) -> None:
        """Raises ValueError for a value out of range."""
        one_of(self, "reads", READS)
        require(len(self.dims) == 3 and min(self.dims) >= 1, f"dims={self.dims} must be blocks, heads and width")
        require(self.dims[2] % self.dims[1] == 0, f"dims={self.dims}: the width must be a multiple of the heads")
        at_least_one(self, "patch_size")
        for name in ("drop_path", "label_smoothing"):
            require(0 <= (value := getattr(self, name)) < 1, f"{name}={value} must be in [0, 1)")
        require(0 < self.layer_decay <= 1, f"layer_decay={self.layer_decay} must be in (0, 1]")
        require(0 <= self.erasing <= 1, f"erasing={self.erasing} must be in [0, 1]")
        require(
            min(self.mixup, self.cutmix) >= 0, f"mixup={self.mixup} and cutmix={self.cutmix} must be 0 (off) or more"
        )

    def check_upstream(self, upstream: ModuleConfig | None) -> None:
        """Raises ValueError when it is not a tokenizer, or is one that untouched images do not need."""
        if self.reads == "images":
            require(upstream is None, "model.reads=images needs no tokenizer: set upstream=null")
            return
        if not isinstance(upstream := self.required(upstream), TokenizerConfig):
            raise ValueError(f"model.reads={self.reads} needs a tokenizer's recipe upstream, not {upstream.name}'s")
        upstream.check_tokens()

    def check_data(self, data: Any) -> None:
        """Raises ValueError for images that patches do not fill, and an odd batch, whose images are mixed in pairs."""
        size, batch, patch = data.image_size, data.batch_size, self.patch_size
        fits = self.reads == "codes" or size % patch == 0
        require(fits, f"model.patch_size={patch} does not divide data.image_size={size}")
        require(batch % 2 == 0 or not self.mixes, f"data.batch_size={batch} must be even: mixup is of pairs of images")

    def check_ready(self, num_classes: int) -> None:
        """Raises ValueError for images of one class, or weights of another size; FileNotFoundError where they cannot
        be had."""
        require(num_classes >= 2, f"{self.name} needs labels: the images have {num_classes} class")
        if self.pretrained:
            source = pretrained_vit(self.pretrained)
            found = [len(source.blocks), source.blocks[0].attn.num_heads, source.embed_dim]
            require(found == self.dims, f"model.dims={self.dims}, but model.pretrained={self.pretrained} has {found}")
            patch = source.patch_embed.patch_size[0]
            fits = self.reads == "codes" or patch == self.patch_size
            require(fits, f"model.patch_size={self.patch_size}, but model.pretrained={self.pretrained} has {patch}")

    @property
    def mixes(self) -> bool:
        return max(self.mixup, self.cutmix) > 0

    @property
    def inputs(self) -> str:
        return "images" if self.reads == "images" else "tokens"

    @property
    def decodes(self) -> bool:
        return self.reads == "reconstructions"

    @property
    def is_control(self) -> bool:
        return self.reads == "images"

    def describe(self) -> dict[str, str]:
        blocks, heads, width = self.dims
        return {"model": f"{self.name} of {self.reads}: {blocks} blocks of {heads} heads, {width} wide"}


class TokenClassifier(Module):
    """timm's VisionTransformer on what a frozen tokenizer, which is no part of the weights, leaves of an image.

    As in MAE's fine-tuning the class is told from the mean of the patches after a LayerNorm. Accuracies are top-1 in %.
    """

    config: TokenClassifierConfig
    layout: ClassVar[Layout] = {
        "token classifier": {
            "loss": ["Multiline", ["loss/classifier", "val/loss"]],
            "accuracy, %": ["Multiline", ["val/classifier/accuracy"]],
        }
    }
    progress_metric = "loss/classifier"
    is_restorable = False  # the tokenizer below it is not in its checkpoint
    sums: Tensor  # (3,) of a validation: images, hits, losses

    def __init__(self, config: TokenClassifierConfig, setting: Setting) -> None:
        super().__init__()
        self.config, self.grid_size, self.num_classes = config, setting.grid_size, setting.num_classes
        self.tokenizer = FrozenModule(setting.tokenizer)
        self.network, self.input_shape = self.build_network(config, setting), input_shape(config, setting)
        self.norm = BatchNorm2d(setting.code_dim, affine=False) if config.reads == "codes" else nn.Identity()
        self.register_buffer("sums", torch.zeros(3), persistent=False)
        self.num_seen = 0

    @classmethod
    def build(cls, config: TokenClassifierConfig, setting: Setting) -> Self:
        module = cls(config, setting)
        if config.pretrained:
            load_pretrained(module.network, config.pretrained, new_patches=config.reads == "codes")
        return module

    @classmethod
    def build_network(cls, config: TokenClassifierConfig, setting: Setting) -> Any:
        patch_size = 1 if config.reads == "codes" else config.patch_size
        shape = input_shape(config, setting)
        return build_vit(shape, patch_size, config.dims, setting.num_classes, config.drop_path)

    @classmethod
    def parts(cls, config: TokenClassifierConfig, setting: Setting) -> list[Part]:
        return [Part("ViT", cls.build_network(config, setting), (torch.zeros(1, *input_shape(config, setting)),))]

    def inputs(self, batch: dict[str, Tensor]) -> Tensor:
        """A batch -> what the ViT is fed, normalised: the map of codes (B, d, h, w), or images (B, 3, H, W)."""
        if self.config.reads == "images":
            return normalized(batch["image"])
        tokens, tokenizer = batch["tokens"].view(-1, *self.grid_size), self.tokenizer.network  # (B, h, w)
        with torch.no_grad():
            if self.config.reads == "codes":
                return self.norm(tokenizer.quantizer.lookup(tokens).movedim(-1, 1).float())
            return normalized(tokenizer.decode_indices(tokens).clamp(-1, 1).float())

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits (B, C)."""
        return self.network(self.inputs(batch)).float()

    # ---- training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        inputs, config = self.inputs(batch), self.config
        is_random = config.drop_path or config.erasing or config.mixes  # mixes images of the same device
        with own_random_numbers(self.device) if is_random else nullcontext():
            inputs, targets = self.augmented(inputs, batch["label"])
            logits = self.network(inputs).float()  # (B, C)
        smoothing = config.label_smoothing if targets.ndim == 1 else 0.0  # mixed targets are smoothed already
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        mean = mean_over_ranks(loss.detach())
        check_finite(self.global_step, {"classifier": mean}, inputs, self)
        if logs_now(self):
            self.log("loss/classifier", mean, prog_bar=True)
        return loss * share_of_step(self, batch_idx)

    def augmented(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs, which are changed, and labels (B,) -> the erased and mixed inputs, and labels or targets (B, C)."""
        from timm.data import Mixup
        from timm.data.random_erasing import RandomErasing

        config = self.config
        if config.erasing:
            inputs = RandomErasing(config.erasing, mode="pixel", device=inputs.device)(inputs)
        if not config.mixes:
            return inputs, labels
        require(
            len(inputs) % 2 == 0,
            f"data.batch_size leaves each device {len(inputs)} images, which mixup cannot take in pairs: take another",
        )
        options = {"label_smoothing": config.label_smoothing, "num_classes": self.num_classes}
        return Mixup(config.mixup, config.cutmix, **options)(inputs, labels)

    def configure_optimizers(self) -> Any:
        config = self.config
        rates = config.optimizer.lr, config.optimizer.weight_decay, config.layer_decay
        is_new = bool(config.pretrained) and config.reads == "codes"
        optimizer = build_optimizer(layer_groups(self.network, *rates, new_patches=is_new), config.optimizer)
        schedule = build_schedule(optimizer, config.optimizer, int(self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- validation

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        logits, labels = self(batch), batch["label"]
        losses, hits = F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()
        self.sums += torch.stack([torch.ones_like(hits), hits, losses]).sum(1)

    def on_validation_epoch_end(self) -> None:
        number, hits, losses = all_reduce_sum(self.sums)
        self.num_seen = int(number)
        self.log_dict({"classifier/accuracy": 100 * hits / number, "loss/val": losses / number})
        self.sums.zero_()

    # ---- what is shown, and what a record needs

    def start_screen(self) -> dict[str, str]:
        start = self.config.pretrained or "random weights"
        return {"reads": self.config.reads, "starts from": start} | super().start_screen()

    def rough_loss(self, num_images: int) -> Tensor:
        return self.network(torch.zeros(num_images, *self.input_shape, device=self.device)).square().mean()

    def protocols(self) -> dict[str, str]:
        """How each metric was made."""
        blocks, _, width = self.config.dims
        of = f"vit-{blocks}x{width}/{self.config.pretrained or 'from-scratch'}/val/n{self.num_seen}"
        return {"classifier/accuracy": f"top1/{of}", "loss/val": f"cross-entropy/{of}"}


def input_shape(config: TokenClassifierConfig, setting: Setting) -> tuple[int, int, int]:
    """(d, h, w) of code maps, (3, H, W) of images."""
    size = setting.image_size
    return (setting.code_dim, *setting.grid_size) if config.reads == "codes" else (3, size, size)


def normalized(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> by ImageNet's mean and deviation."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    mean, deviation = ([2 * m - 1 for m in IMAGENET_DEFAULT_MEAN], [2 * s for s in IMAGENET_DEFAULT_STD])
    return normalize(images, mean, deviation)
