"""U-Net of latent diffusion (LDM, Rombach et al. 2022) with the class by cross-attention.

Shapes: B batch, C channels, h w grid, N = h w positions, D width of the class embedding.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.checks import check_sizes, require

from .cnn import Upsample
from .dit import labels_or_none, time_features
from .vit import attend

GROUPS = 32
TIME_RATIO = 4  # width of the time embedding, in `channels`
MLP_RATIO = 4


@dataclass
class UNetConfig:
    """The defaults are B's f16 (its repository's configuration); f8 is [1, 2, 4], 2 blocks, attention at [4, 2, 1].

    `attention_factors` counts downsampling, not sizes: 1 is the full grid. f16 has no level 4, so that only its full
    grid and the middle have attention, although B's appendix A says "at each layer".
    """

    channels: int = 256
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 4])  # one level each
    num_res_blocks: int = 3  # per level; one more on the way up
    attention_factors: list[int] = field(default_factory=lambda: [4, 1])
    head_channels: int = 32
    context_width: int = 512
    dropout: float = 0.0

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a size that cannot be."""
        check_sizes(self)
        for name, divisor in (("norm groups", GROUPS), ("head_channels", self.head_channels)):
            require(self.channels % divisor == 0, f"channels={self.channels} is not divisible by {divisor} ({name})")

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.channel_multipliers) - 1)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """With zero weights, so that its branch counts for nothing at the start."""
    assert layer.bias is not None
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Pre-activation residual block; the time is added to its middle."""

    def __init__(self, in_channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(TIME_RATIO * config.channels, out_channels)
        self.norm2 = nn.GroupNorm(GROUPS, out_channels)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x))) + self.time(time)[:, :, None, None]  # (B, C, h, w)
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(self.norm2(y))))


class Attention(nn.Module):
    """Multi-head attention of positions (B, N, C) to a context (B, M, D)."""

    def __init__(self, channels: int, context_width: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.q = nn.Linear(channels, channels, bias=False)
        self.k = nn.Linear(context_width, channels, bias=False)
        self.v = nn.Linear(context_width, channels, bias=False)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        parts = (self.q(x), self.k(context), self.v(context))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)  # (B, nh, N or M, hd)
        y = attend(q, k, v)  # (B, nh, N, hd)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, N, C)


class GatedMLP(nn.Module):
    """Two layers with a GELU gate (Shazeer 2020, GEGLU)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Linear(channels, 2 * MLP_RATIO * channels)
        self.outer = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.inner(x).chunk(2, dim=2)
        return self.outer(value * F.gelu(gate))


class SpatialTransformer(nn.Module):
    """Self-attention, cross-attention to the class and MLP over the positions, as one residual branch.

    An unconditional network (`context_width` 0) has no cross-attention.
    """

    def __init__(self, channels: int, context_width: int, head_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.norm1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, channels, head_channels)
        if context_width:
            self.norm2 = nn.LayerNorm(channels)
            self.cross_attention = Attention(channels, context_width, head_channels)
        self.norm3 = nn.LayerNorm(channels)
        self.mlp = GatedMLP(channels)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        y = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, N, C)
        z = self.norm1(y)
        y = y + self.self_attention(z, z)
        if context is not None:
            y = y + self.cross_attention(self.norm2(y), context)
        y = y + self.mlp(self.norm3(y))
        return x + self.proj_out(y.transpose(1, 2).unflatten(2, x.shape[2:]))  # (B, C, h, w)


class Stage(nn.Module):
    """A residual block, with attention after it where asked for, then a change of resolution, if any."""

    def __init__(
        self, res: ResBlock, transformer: SpatialTransformer | None, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.res, self.transformer, self.resample = res, transformer, resample

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        x = self.res(x, time)
        if self.transformer is not None:
            x = self.transformer(x, context)
        return x if self.resample is None else self.resample(x)


class UNet(nn.Module):
    """(x, t, labels) -> noise, for latents of `channels` on `grid_size` = (rows, columns).

    Labels are (B,) ids in [0, num_classes]; the last is `no_class`, which None means for every image. The class is a
    context of one token, so that cross-attention adds the same vector at every position.

    Raises:
        ValueError: a value of `config` cannot be, or the grid cannot be halved so often.
    """

    def __init__(self, config: UNetConfig, channels: int, grid_size: tuple[int, int], num_classes: int = 0) -> None:
        super().__init__()
        config.check()
        for length in grid_size:
            require(
                length % config.downsampling == 0,
                f"channel_multipliers={config.channel_multipliers} need a grid divisible by {config.downsampling}, "
                f"got {grid_size[0]} x {grid_size[1]} latents",
            )
        self.config, self.grid_size = config, grid_size
        self.channels = self.out_channels = channels
        self.num_classes = self.no_class = num_classes
        context_width = config.context_width if num_classes else 0
        self.classes = nn.Embedding(num_classes + 1, context_width) if num_classes else None

        def transformer(width: int) -> SpatialTransformer:
            return SpatialTransformer(width, context_width, config.head_channels)

        width, time_width = config.channels, TIME_RATIO * config.channels
        self.time = nn.Sequential(nn.Linear(width, time_width), nn.SiLU(), nn.Linear(time_width, time_width))
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips = [width]
        levels = list(enumerate(config.channel_multipliers))
        for level, multiplier in levels:
            for _ in range(config.num_res_blocks):
                res = ResBlock(width, multiplier * config.channels, config)
                width = multiplier * config.channels
                self.down.append(Stage(res, transformer(width) if 2**level in config.attention_factors else None))
                skips.append(width)
            if level < len(levels) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
        self.middle1 = Stage(ResBlock(width, width, config), transformer(width))
        self.middle2 = ResBlock(width, width, config)
        for level, multiplier in reversed(levels):
            for block in range(config.num_res_blocks + 1):
                res = ResBlock(width + skips.pop(), multiplier * config.channels, config)
                width = multiplier * config.channels
                attention = transformer(width) if 2**level in config.attention_factors else None
                is_last = level > 0 and block == config.num_res_blocks
                self.up.append(Stage(res, attention, Upsample(width) if is_last else None))
        self.norm = nn.GroupNorm(GROUPS, width)
        self.head = zeroed(nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Latents (B, C, h, w) at times t (B,) of labels (B,) -> noise (B, C, h, w)."""
        context = None
        if self.classes is not None:
            context = self.classes(labels_or_none(labels, x, self.no_class))[:, None]  # (B, 1, D)
        time = F.silu(self.time(time_features(t, self.config.channels)))  # (B, 4 channels)
        x = self.stem(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, time, context) if isinstance(layer, Stage) else layer(x)
            skips.append(x)
        x = self.middle2(self.middle1(x, time, context), time)
        for stage in self.up:
            x = stage(torch.cat([x, skips.pop()], dim=1), time, context)
        return self.head(F.silu(self.norm(x)))
