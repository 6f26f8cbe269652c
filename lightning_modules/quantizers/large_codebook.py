"""VQGAN-LC's codebook (paper B, section 3.2): a frozen table of pretrained features and a trained projector.

Table and projector are those of `ProjectedCodebook`; this file adds how the features are loaded, and the projector's
first scale.

Shapes: K codes of d dimensions; C features of a row of the table; N latents.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_modules.checks import one_of, require
from lightning_modules.options import neutral, place
from lightning_modules.quantizers.base import QuantizerConfig, QuantizerOutput
from lightning_modules.quantizers.projected import ProjectedCodebook


@dataclass
class CodebookSource:
    """How the frozen table is made (`experiments.build_codebook`); part of an experiment's identity.

    `path` names a ready file and wins over the rest. `method`: "kmeans" (paper B), "random" selection of features, or
    "normal" random numbers in place of features (B-Table 6). `per_class` splits K over the classes (the official code)
    instead of one global clustering (the paper's text). `data` names another data set whose images give the features
    (B-Table 9); empty = the training images.
    """

    path: str = place()  # a run is identified by the table in the file
    encoder: str = "timm:vit_large_patch14_clip_quickgelu_224.openai"  # or efficientnet-lite0: no hub
    encoder_image_size: int = 224  # pixels fed to the encoder
    stage: int = 0  # 0: the last feature map, n: the n-th stage (EfficientNet-Lite0: 112 channels at 4)
    pool: int = 4  # average pooling of the feature map; paper B: 4 on CLIP's 16 x 16
    num_images: int = 0  # class-balanced subset of the training images, 0 = all
    method: str = "kmeans"
    per_class: bool = True
    iterations: int = 10  # passes over the features at most; fewer when the clusters no longer change
    seed: int = 0
    data: str = ""
    tolerance: float = 0.0  # also stop when a pass lowers the inertia by at most this share of it, 0 = go on

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        one_of(self, "method", ("kmeans", "random", "normal"))
        require(0 <= self.tolerance < 1, f"tolerance={self.tolerance} must be in [0, 1)")


@dataclass
class LargeCodebookConfig(QuantizerConfig):
    """Weights as in paper B (alpha 1.0 on the commitment term, beta 0.33 on the codebook term).

    B-Table 10 takes the parts away one by one: `project=false` compares latents with the features themselves (then
    code_dim must be feature_dim), `train_table=true` trains the table together with the projector.

    `match_at`: the optimizer step at which the projector is scaled to the latents. Before it they pass as they are and
    train encoder and decoder alone, as Zhao et al. (2026, arXiv 2605.06870) do to keep more of their dimensions.
    """

    name: str = "large_codebook"
    commitment_weight: float = 1.0
    codebook_weight: float = 0.33
    feature_dim: int = 768  # C: 768 for CLIP ViT-L/14
    project: bool = True
    train_table: bool = False
    match_scale: bool = True  # see `LargeCodebook`; false is the official code's way
    match_at: int = neutral(0)  # optimizer steps, before which latents pass as they are
    source: CodebookSource = field(default_factory=CodebookSource)

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        if not self.project and code_dim != self.feature_dim:
            raise ValueError(
                f"without a projector the codes are the features: code_dim={code_dim} must be feature_dim="
                f"{self.feature_dim}"
            )
        require(
            self.match_at == 0 or (self.match_at > 0 and self.project and self.match_scale),
            f"quantizer.match_at={self.match_at} must be a step, and needs quantizer.project and quantizer.match_scale",
        )


class LargeCodebook(ProjectedCodebook):
    """The projected codebook of a table (K, C) of features, which `fill` loads before the first forward.

    Departs from B 3.2: at the first training batch, or that of step `match_at`, the projector is rescaled so that the
    projected table has the mean and standard deviation of the latents in each dimension. With the official
    initialisation the table can be far wider than the latents; then the few codes nearest the origin win every token,
    and stay the only ones trained.
    """

    flags: tuple[str, ...] = ("is_filled", "is_matched")
    config: LargeCodebookConfig

    def __init__(self, config: LargeCodebookConfig, codebook_size: int, code_dim: int) -> None:
        config.check(codebook_size, code_dim)  # before the table is made
        super().__init__(config, code_dim, torch.zeros(codebook_size, config.feature_dim))
        if config.train_table:
            table = self.table
            del self.table
            self.table = nn.Parameter(table)
        self.is_filled = False  # the table was loaded
        self.is_matched = False  # the projector was scaled to the latents
        if config.match_at:
            self.flags = (*self.flags, "num_waited")
        if config.project:
            nn.init.normal_(self.projector.weight, std=code_dim**-0.5)
            nn.init.zeros_(self.projector.bias)
        else:
            self.projector = nn.Identity()  # type: ignore[assignment]

    @torch.no_grad()
    def fill(self, features: Tensor) -> None:
        """Loads the frozen table. Raises ValueError when `features` is not (K, C) or not finite."""
        if tuple(features.shape) != tuple(self.table.shape):
            raise ValueError(
                f"the codebook holds features of shape {tuple(features.shape)}, but codebook_size and feature_dim ask "
                f"for {tuple(self.table.shape)}: build one of that size with `python -m experiments.build_codebook`"
            )
        if not torch.isfinite(features).all():
            raise ValueError("the codebook holds values that are not finite: build it again")
        self.table.copy_(features)
        self.is_filled = True

    def forward(self, z: Tensor) -> QuantizerOutput:
        if not self.is_filled:
            raise RuntimeError("the large codebook is empty: call fill(features) before the first forward")
        if self.training and self.config.project and self.config.match_scale and not self.is_matched:
            if self.waits(self.config.match_at):
                return self.pass_latents(z)
            self.match_scale(z.detach().float().flatten(0, -2))
        return super().forward(z)
