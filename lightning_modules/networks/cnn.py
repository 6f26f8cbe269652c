"""Convolutional encoder and decoder of VQGAN (Esser et al. 2021), the CNN baseline of papers A and B.

Shapes: B batch, H W image, h w latent grid, C channels, D latent channels.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.options import neutral

from .base import BackboneConfig, Decoder, Encoder, divided


@dataclass
class CNNConfig(BackboneConfig):
    """The defaults are the ImageNet VQGAN of taming-transformers: f = 16, one level per multiplier.

    `stem`: a side of the squares of pixels that are folded into channels before the first convolution, and out of them
    after the last one. Departs from both papers where it is above 1: full resolution costs most of the time.
    """

    name: str = "cnn"
    channels: int = 128
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: int = 2  # per level; the decoder has one more
    attention_resolutions: list[int] = field(default_factory=lambda: [16])  # grid sizes with attention
    latent_channels: int = 256
    dropout: float = 0.0
    stem: int = neutral(1)
    middle_attention: bool = neutral(True)  # at the lowest resolution, between two residual blocks

    @property
    def downsampling(self) -> int:
        """Pixels per latent along one side: the stem's, and one halving between neighbouring levels."""
        return self.stem * 2 ** (len(self.channel_multipliers) - 1)


def group_norm(channels: int, affine: bool = True) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or the most below 32 that divide `channels`."""
    num_groups = next(groups for groups in range(min(32, channels), 0, -1) if channels % groups == 0)
    return nn.GroupNorm(num_groups, channels, eps=1e-6, affine=affine)


class ResBlock(nn.Module):
    """Pre-activation residual block: two of norm, swish, 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float, bias: bool = True) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=bias)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))  # (B, C, h, w)
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return self.shortcut(x) + y


class Attention(nn.Module):
    """Residual single-head self-attention over the h * w positions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, h*w, 3C)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)  # 3 x (B, 1, h*w, C)
        y = F.scaled_dot_product_attention(q, k, v)  # (B, 1, h*w, C)
        y = y.squeeze(1).transpose(1, 2).unflatten(2, x.shape[2:])  # (B, C, h, w)
        return x + self.proj(y)


class Downsample(nn.Module):
    """Halves both sides by a stride-2 convolution, padded on the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles both sides: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, attention after each where asked for, then a change of resolution."""

    def __init__(
        self, widths: list[int], attention: bool, dropout: float, resample: nn.Module, bias: bool = True
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ResBlock(a, b, dropout, bias) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(Attention(b) if attention else nn.Identity() for b in widths[1:])
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            x = attention(block(x))
        return self.resample(x)


def _middle(channels: int, config: CNNConfig) -> nn.Sequential:
    return nn.Sequential(
        ResBlock(channels, channels, config.dropout),
        Attention(channels) if config.middle_attention else nn.Identity(),
        ResBlock(channels, channels, config.dropout),
    )


def _grid_size(config: CNNConfig, image_size: int) -> int:
    factor = config.downsampling
    origin = f"the downsampling of channel_multipliers {config.channel_multipliers} and stem {config.stem}"
    return divided(image_size, factor, f"{factor}, {origin}")


class CNNEncoder(Encoder):
    """Image (B, 3, H, W) in [-1, 1] to latents (B, h, w, D), with H = W = `image_size` and D = `width`.

    Raises:
        ValueError: `image_size` is not divisible by the downsampling factor.
    """

    def __init__(self, config: CNNConfig, image_size: int) -> None:
        super().__init__()
        self.grid_size = _grid_size(config, image_size)
        self.width, self.image_size, self.downsampling = config.latent_channels, image_size, config.downsampling
        channels, size = config.channels, image_size // config.stem
        last = len(config.channel_multipliers) - 1
        self.fold = nn.PixelUnshuffle(config.stem) if config.stem > 1 else nn.Identity()
        self.conv_in = nn.Conv2d(3 * config.stem**2, channels, 3, padding=1)
        self.levels = nn.ModuleList()  # finest first
        for index, multiplier in enumerate(config.channel_multipliers):
            width = config.channels * multiplier
            resample = Downsample(width) if index < last else nn.Identity()
            attention = size in config.attention_resolutions
            widths = [channels] + [width] * config.num_res_blocks
            self.levels.append(Level(widths, attention, config.dropout, resample))
            channels, size = width, size // 2
        self.middle = _middle(channels, config)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, self.width, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(self.fold(image))  # (B, C, H / stem, W / stem)
        for level in self.levels:
            x = level(x)
        x = self.middle(x)  # (B, C, h, w)
        x = self.conv_out(F.silu(self.norm_out(x)))  # (B, D, h, w)
        return x.permute(0, 2, 3, 1)  # (B, h, w, D)


class CNNDecoder(Decoder):
    """Latents (B, h, w, D) to an image (B, out_channels, H, W), unbounded but trained towards [-1, 1].

    Raises:
        ValueError: `image_size` is not divisible by the downsampling factor.
    """

    def __init__(self, config: CNNConfig, image_size: int, out_channels: int = 3) -> None:
        super().__init__()
        self.grid_size = _grid_size(config, image_size)
        self.width = config.latent_channels
        channels, size = config.channels * config.channel_multipliers[-1], self.grid_size
        last = len(config.channel_multipliers) - 1
        self.conv_in = nn.Conv2d(self.width, channels, 3, padding=1)
        self.middle = _middle(channels, config)
        self.levels = nn.ModuleList()  # coarsest first
        for index, multiplier in enumerate(reversed(config.channel_multipliers)):
            width = config.channels * multiplier
            resample = Upsample(width) if index < last else nn.Identity()
            attention = size in config.attention_resolutions
            widths = [channels] + [width] * (config.num_res_blocks + 1)
            self.levels.append(Level(widths, attention, config.dropout, resample))
            channels, size = width, size * 2
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, out_channels * config.stem**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(config.stem) if config.stem > 1 else nn.Identity()

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive adversarial weight compares gradients."""
        return self.conv_out.weight

    def features(self, latents: Tensor) -> Tensor:
        x = latents.permute(0, 3, 1, 2)  # (B, D, h, w)
        if self.conv_in.weight.is_contiguous():  # permuted strides would put all that follows into channels-last memory
            x = x.contiguous()
        x = self.middle(self.conv_in(x))  # (B, C, h, w)
        for level in self.levels:
            x = level(x)
        return F.silu(self.norm_out(x))  # (B, C, H / stem, W / stem)

    def to_pixels(self, features: Tensor) -> Tensor:
        return self.unfold(self.conv_out(features))  # (B, out_channels, H, W)
