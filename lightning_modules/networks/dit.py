"""Diffusion transformer DiT (Peebles and Xie 2023) with adaLN-Zero; SiT (Ma et al. 2024) has the same network.

Shapes: B batch, C latent channels, h w latent grid, p patch side, N = h w / p^2 tokens (raster order), D width.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.checks import check_sizes, one_of, require

from .vit import Attention, sincos_positions

TIME_FEATURES = 256
INIT_STD = 0.02  # of the label table and the time MLP


class DiTSize(NamedTuple):
    """One row of the DiT paper's Table 1."""

    blocks: int
    width: int
    heads: int


DIT_SIZES: dict[str, DiTSize] = {
    "micro": DiTSize(4, 128, 4),  # micro to mini: of no paper, for CIFAR-10 on a CPU
    "tiny": DiTSize(6, 192, 3),
    "mini": DiTSize(8, 256, 4),
    "s": DiTSize(12, 384, 6),  # s to xl: the DiT paper's Table 1
    "b": DiTSize(12, 768, 12),
    "l": DiTSize(24, 1024, 16),
    "xl": DiTSize(28, 1152, 16),  # B, appendix A: DiT-XL/2 and SiT-XL/2
}


@dataclass
class DiTConfig:
    """The defaults are B's DiT-XL/2 (appendix A); its SiT-XL/2 is `drop_sigma=true`."""

    size: str = "xl"  # a key of DIT_SIZES
    dims: list[int] = field(default_factory=list)  # blocks, width, heads; overrides the size
    patch_size: int = 2
    mlp_ratio: int = 4
    learn_sigma: bool = True  # predicts 2 C channels: the noise, then where the variance lies in its range
    drop_sigma: bool = False  # SiT: these weights exist, but their output is left out, so they are never trained

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a name or size that cannot be."""
        self.resolved()
        check_sizes(self)
        require(self.learn_sigma or not self.drop_sigma, "drop_sigma=True needs learn_sigma=True")

    def resolved(self) -> DiTSize:
        """The dimensions.

        Raises:
            ValueError: the size is unknown, or the dimensions are not three that fit together.
        """
        if not self.dims:
            one_of(self, "size", DIT_SIZES)
            return DIT_SIZES[self.size]
        fits = len(self.dims) == len(DiTSize._fields) and min(self.dims) >= 1
        require(fits, f"dims={self.dims} must be [blocks, width, heads], each at least 1")
        size = DiTSize(*self.dims)
        require(size.width % size.heads == 0, f"dims={self.dims}: {size.heads} heads do not divide the width")
        require(size.width % 4 == 0, f"dims={self.dims}: the width must be divisible by 4, for the positions")
        return size

    @property
    def words(self) -> str:
        size = self.resolved()
        return f"{size.blocks} blocks, {size.width} wide, patches of {self.patch_size} x {self.patch_size}"


def time_features(t: Tensor, width: int) -> Tensor:
    """Cosines, then sines, of the times t (B,) at `width` / 2 frequencies from 1 to nearly 1 / 10,000: (B, width)."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t[:, None].float() * frequency  # (B, width / 2)
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def labels_or_none(labels: Tensor | None, x: Tensor, no_class: int) -> Tensor:
    """The labels (B,), or "no class" for every image of x (B, ...).

    Raises:
        ValueError: there is not one label an image.
    """
    if labels is None:
        return torch.full(x.shape[:1], no_class, device=x.device)
    require(labels.shape == x.shape[:1], f"labels must be ({len(x)},), one an image, got {tuple(labels.shape)}")
    return labels


def normalise(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive LayerNorm of tokens (B, N, D) with shift and scale (B, 1, D)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class DiTBlock(nn.Module):
    """Transformer block whose norms and residual gates come from the condition, the identity at the start.

    The DiT paper's 3.2, "adaLN-Zero block".
    """

    def __init__(self, size: DiTSize, mlp_ratio: int) -> None:
        super().__init__()
        width = size.width
        self.attention = Attention(width, size.heads, width // size.heads, qkv_bias=True)
        self.mlp = nn.Sequential(
            nn.Linear(width, mlp_ratio * width), nn.GELU("tanh"), nn.Linear(mlp_ratio * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=2)  # (B, 1, D)
        x = torch.addcmul(x, gate1, self.attention(normalise(x, shift1, scale1)))  # (B, N, D)
        return torch.addcmul(x, gate2, self.mlp(normalise(x, shift2, scale2)))


class DiT(nn.Module):
    """(x, t, labels) -> prediction, for latents of `channels` on `grid_size` = (rows, columns).

    Labels are (B,) ids in [0, num_classes]; the last, `no_class`, is the other side of classifier-free guidance and
    all there is in an unconditional model (`num_classes` 0). None means it for every image.

    Raises:
        ValueError: a value of `config` cannot be, or the grid is no square of whole patches.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, channels: int, grid_size: tuple[int, int], num_classes: int = 0) -> None:
        super().__init__()
        config.check()
        size, patch = config.resolved(), config.patch_size
        rows, columns = grid_size
        require(rows == columns, f"DiT needs a square grid of latents, got {rows} x {columns}")
        require(rows % patch == 0, f"patch_size={patch} does not divide the grid of {rows} x {columns} latents")
        self.config, self.channels, self.grid_size = config, channels, grid_size
        self.num_classes = self.no_class = num_classes
        predicted = 2 * channels if config.learn_sigma else channels
        self.out_channels = channels if config.drop_sigma else predicted  # of what `forward` returns
        self.patches = nn.Conv2d(channels, size.width, patch, stride=patch)
        self.register_buffer("positions", sincos_positions(size.width, rows // patch), persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_FEATURES, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.classes = nn.Embedding(num_classes + 1, size.width)
        self.blocks = nn.ModuleList(DiTBlock(size, config.mlp_ratio) for _ in range(size.blocks))
        self.modulation = nn.Linear(size.width, 2 * size.width)
        self.head = nn.Linear(size.width, patch**2 * predicted)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier-uniform weights and zero biases, but zeros wherever a block or the prediction begins to count."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                if name == "head" or name.endswith("modulation"):
                    nn.init.zeros_(module.weight)
                elif name.startswith("time."):
                    nn.init.normal_(module.weight, std=INIT_STD)
                else:
                    nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        nn.init.normal_(self.classes.weight, std=INIT_STD)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) at times t (B,) of labels (B,) -> prediction (B, out_channels, h, w)."""
        labels = labels_or_none(labels, x, self.no_class)
        condition = F.silu(self.time(time_features(t, TIME_FEATURES)) + self.classes(labels))  # (B, D)
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions  # (B, N, D)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=2)  # (B, 1, D)
        tokens = self.head(normalise(tokens, shift, scale))  # (B, N, p p C')
        patch, side = self.config.patch_size, self.grid_size[0] // self.config.patch_size
        pixels = tokens.view(len(x), side, side, patch, patch, -1)  # (B, h/p, w/p, p, p, C')
        return pixels.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, *self.grid_size)[:, : self.out_channels]
