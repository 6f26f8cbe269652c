"""Discriminators: the PatchGAN of VQGAN (paper B) and the StyleGAN2 discriminator (paper A, section 3.3).

Shapes: B batch, H W image, C channels, h w a feature map.
"""

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.distributed import world_size

from .base import DiscriminatorConfig
from .batch_norm import BatchNorm2d


@dataclass
class PatchGANConfig(DiscriminatorConfig):
    """Isola et al. 2017; B's code uses two layers, taming-transformers three."""

    name: str = "patchgan"
    channels: int = 64
    num_layers: int = 3


@dataclass
class StyleGANConfig(DiscriminatorConfig):
    """Karras et al. 2020; a map of side r has min(max_channels, channel_base / r) channels."""

    name: str = "stylegan"
    channel_base: int = 32_768
    max_channels: int = 512


class PatchGAN(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] to one logit a patch (B, 1, h, w), h = H / 2^num_layers - 2."""

    def __init__(self, channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for index in range(1, num_layers + 1):
            before, width = width, channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(width, 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)

    def pair(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both. Several ranks exchange both batches' statistics at once; they stay apart."""
        if world_size() == 1:
            return self(real), self(fake)
        x = torch.cat([real, fake])
        for layer in self.layers:
            x = layer(x, parts=2) if isinstance(layer, BatchNorm2d) else layer(x)
        logits_real, logits_fake = x.chunk(2)
        return logits_real, logits_fake


class EqualConv2d(nn.Conv2d):
    """Convolution with equalised learning rate: N(0, 1) weights, used times 1 / sqrt(fan in). No bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight[0].numel())
        return F.conv2d(input, weight, None, self.stride, self.padding)


class EqualLinear(nn.Linear):
    """Linear layer with equalised learning rate. No bias."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight / math.sqrt(self.in_features))


class BiasedLeakyReLU(nn.Module):
    """Adds a bias per channel, then a leaky ReLU (0.2) that keeps the variance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        bias = self.bias.view(-1, *[1] * (x.ndim - 2))  # (C, 1, 1) or (C,)
        return F.leaky_relu(x + bias, 0.2) * math.sqrt(2)


def blur(x: Tensor, padding: int, stride: int = 1) -> Tensor:
    """Low-pass filter of (B, C, h, w) with the separable kernel [1, 3, 3, 1] / 8."""
    kernel = blur_kernel(x.dtype, x.device).expand(x.shape[1], 1, 4, 4)
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=x.shape[1])


@functools.cache  # to bring numbers to a GPU, the host waits for it
def blur_kernel(dtype: torch.dtype, device: torch.device) -> Tensor:
    """(4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=dtype, device=device) / 8
    return torch.outer(taps, taps)


class ResBlock(nn.Module):
    """Halves both sides of (B, C, h, w); aliasing is held down by a blur before each stride."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = EqualConv2d(in_channels, in_channels, 3, padding=1, bias=False)
        self.act1 = BiasedLeakyReLU(in_channels)
        self.conv2 = EqualConv2d(in_channels, out_channels, 3, stride=2, bias=False)
        self.act2 = BiasedLeakyReLU(out_channels)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.conv1(x))  # (B, C, h, w)
        y = self.act2(self.conv2(blur(y, padding=2)))  # (B, C', h/2, w/2)
        skip = self.skip(blur(x, padding=1, stride=2))  # the blur is needed only where the stride lands
        return (y + skip) / math.sqrt(2)


def append_minibatch_stddev(x: Tensor) -> Tensor:
    """Appends one channel to (B, C, h, w): the mean standard deviation within groups of about four images.

    Group g is the images g, g + B/group, ... The group grows where four does not divide B, so any B works. Of
    W ranks, each of which has every W-th image, the groups are those of the global batch if four divides a rank's B.
    """
    num_groups = max(len(x) // 4, 1)
    while len(x) % num_groups:
        num_groups -= 1
    grouped = x.unflatten(0, (-1, num_groups))  # (group, num_groups, C, h, w)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt()  # (num_groups, C, h, w)
    feature = std.mean(dim=(1, 2, 3), keepdim=True)  # (num_groups, 1, 1, 1)
    feature = feature.repeat(len(x) // num_groups, 1, *x.shape[2:])  # (B, 1, h, w)
    return torch.cat([x, feature], dim=1)


class StyleGANDiscriminator(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] with H = W = `image_size` to logits (B,). R1 can differentiate it twice.

    Raises:
        ValueError: `image_size` is not a power of two of at least 8.
    """

    def __init__(self, image_size: int, channel_base: int = 32_768, max_channels: int = 512) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size {image_size} must be a power of two of at least 8 for discriminator stylegan")
        sides = [2**power for power in range(int(math.log2(image_size)), 1, -1)]  # image_size, ..., 8, 4
        widths = [min(max_channels, max(1, channel_base // side)) for side in sides]
        self.conv_in = EqualConv2d(3, widths[0], 1, bias=False)
        self.act_in = BiasedLeakyReLU(widths[0])
        self.blocks = nn.Sequential(*map(ResBlock, widths[:-1], widths[1:]))
        self.conv_out = EqualConv2d(widths[-1] + 1, widths[-1], 3, padding=1, bias=False)
        self.act_out = BiasedLeakyReLU(widths[-1])
        self.hidden = EqualLinear(widths[-1] * 4 * 4, widths[-1], bias=False)
        self.act_hidden = BiasedLeakyReLU(widths[-1])
        self.logit = EqualLinear(widths[-1], 1, bias=False)
        self.logit_bias = nn.Parameter(torch.zeros(1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.act_in(self.conv_in(image)))  # (B, C, 4, 4)
        x = self.act_out(self.conv_out(append_minibatch_stddev(x)))  # (B, C, 4, 4)
        x = self.act_hidden(self.hidden(x.flatten(1)))  # (B, C)
        return (self.logit(x) + self.logit_bias).squeeze(1)  # (B,)

    def pair(self, real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both."""
        return self(real), self(fake)


DISCRIMINATORS: dict[str, tuple[type[nn.Module], type[DiscriminatorConfig]]] = {
    "patchgan": (PatchGAN, PatchGANConfig),
    "stylegan": (StyleGANDiscriminator, StyleGANConfig),
}


def build_discriminator(config: DiscriminatorConfig, image_size: int) -> nn.Module:
    """The discriminator that `config` describes, for square images of side `image_size`.

    Raises:
        ValueError: the name is unknown, or the image is too small or of the wrong size for the network.
    """
    if isinstance(config, PatchGANConfig):
        smallest = 3 * 2**config.num_layers  # leaves one logit
        if image_size < smallest:
            raise ValueError(
                f"image_size {image_size} is too small for patchgan with num_layers {config.num_layers}, "
                f"which needs {smallest}; lower num_layers"
            )
        return PatchGAN(config.channels, config.num_layers)
    if isinstance(config, StyleGANConfig):
        return StyleGANDiscriminator(image_size, config.channel_base, config.max_channels)
    raise ValueError(f"discriminator name {config.name!r} is not one of {', '.join(DISCRIMINATORS)}")
