"""Open-MAGVIT2's convolutional encoder and decoder (Luo et al. 2024, arXiv 2409.04410), for lookup-free quantization.

Against VQGAN's (`cnn`): no attention, residual blocks without bias, as many blocks a level in the decoder as in the
encoder, upsampling by depth-to-space, and a decoder whose levels begin with a norm that the latents modulate. As that
norm is of the whole image's statistics, each pixel depends on all latents.

Shapes: B batch, H W image, h w latent grid, C channels, D latent channels.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.checks import require

from .base import BackboneConfig, Decoder, Encoder, divided
from .cnn import Level, ResBlock, group_norm


@dataclass
class MAGVIT2Config(BackboneConfig):
    """The defaults are the published model for 256 x 256 pixels with 2^18 codes: f = 16, one level per multiplier."""

    name: str = "magvit2"
    channels: int = 128
    channel_multipliers: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: int = 4  # per level, and in the middle
    latent_channels: int = 18  # bits of a token

    @property
    def downsampling(self) -> int:
        return int(2 ** (len(self.channel_multipliers) - 1))

    def widths(self) -> list[list[int]]:
        """Channels before and after each block of each level, finest first."""
        ends = [self.channels * multiplier for multiplier in self.channel_multipliers]
        return [[start] + [end] * self.num_res_blocks for start, end in zip([self.channels, *ends], ends, strict=False)]

    def grid_size(self, image_size: int) -> int:
        """Raises ValueError unless the levels divide the image, and leave more than one latent, for a deviation."""
        name = f"{self.downsampling}, the downsampling of channel_multipliers {self.channel_multipliers}"
        size = divided(image_size, self.downsampling, name)
        require(size > 1, f"image_size {image_size} is a single latent, of which the decoder needs the deviation")
        return size


def middle(config: MAGVIT2Config) -> nn.Sequential:
    channels = config.widths()[-1][-1]
    return nn.Sequential(*(ResBlock(channels, channels, 0.0, bias=False) for _ in range(config.num_res_blocks)))


class MAGVIT2Encoder(Encoder):
    """Image (B, 3, H, W) in [-1, 1] to latents (B, h, w, D), with H = W = `image_size` and D = `width`.

    Raises:
        ValueError: `image_size` is not divisible by the downsampling factor.
    """

    def __init__(self, config: MAGVIT2Config, image_size: int) -> None:
        super().__init__()
        self.grid_size, self.downsampling = config.grid_size(image_size), config.downsampling
        self.width, self.image_size = config.latent_channels, image_size
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.levels = nn.ModuleList()  # finest first
        for index, widths in enumerate(config.widths(), 1):
            is_last, width = index == len(config.channel_multipliers), widths[-1]
            resample = nn.Identity() if is_last else nn.Conv2d(width, width, 3, stride=2, padding=1)
            self.levels.append(Level(widths, False, 0.0, resample, bias=False))
        self.middle = middle(config)
        self.norm_out = group_norm(width)
        self.conv_out = nn.Conv2d(width, self.width, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_in(image)  # (B, C, H, W)
        for level in self.levels:
            x = level(x)
        x = F.silu(self.norm_out(self.middle(x)))  # (B, C, h, w)
        return self.conv_out(x).permute(0, 2, 3, 1)  # (B, h, w, D)


class AdaptiveNorm(nn.Module):
    """Group norm whose scale and bias are linear in the deviation and the mean of the latents over the image."""

    def __init__(self, channels: int, latent_channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, affine=False)
        self.gamma = nn.Linear(latent_channels, channels)
        self.beta = nn.Linear(latent_channels, channels)

    def forward(self, x: Tensor, latents: Tensor) -> Tensor:
        rows = latents.flatten(1, 2)  # (B, h * w, D)
        scale = self.gamma((rows.var(1) + 1e-6).sqrt())  # (B, C)
        bias = self.beta(rows.mean(1))
        return scale[..., None, None] * self.norm(x) + bias[..., None, None]


class MAGVIT2Decoder(Decoder):
    """Latents (B, h, w, D) to an image (B, out_channels, H, W), unbounded but trained towards [-1, 1].

    Raises:
        ValueError: `image_size` is not divisible by the downsampling factor.
    """

    def __init__(self, config: MAGVIT2Config, image_size: int, out_channels: int = 3) -> None:
        super().__init__()
        self.grid_size, self.width = config.grid_size(image_size), config.latent_channels
        ends = [widths[-1] for widths in reversed(config.widths())]  # coarsest first, as all below
        self.conv_in = nn.Conv2d(self.width, ends[0], 3, padding=1)
        self.middle = middle(config)
        self.levels, self.adaptive = nn.ModuleList(), nn.ModuleList()
        for index, (start, end) in enumerate(zip([ends[0], *ends], ends, strict=False), 1):
            upsample = nn.Sequential(nn.Conv2d(end, 4 * end, 3, padding=1), nn.PixelShuffle(2))
            resample = nn.Identity() if index == len(ends) else upsample
            self.adaptive.append(AdaptiveNorm(start, self.width))
            self.levels.append(Level([start] + [end] * config.num_res_blocks, False, 0.0, resample, bias=False))
        self.norm_out = group_norm(ends[-1])
        self.conv_out = nn.Conv2d(ends[-1], out_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive adversarial weight compares gradients."""
        return self.conv_out.weight

    def features(self, latents: Tensor) -> Tensor:
        x = self.middle(self.conv_in(latents.permute(0, 3, 1, 2).contiguous()))  # (B, C, h, w)
        for adaptive, level in zip(self.adaptive, self.levels, strict=True):
            x = level(adaptive(x, latents))
        return F.silu(self.norm_out(x))  # (B, C, H, W)

    def to_pixels(self, features: Tensor) -> Tensor:
        return self.conv_out(features)  # (B, out_channels, H, W)
