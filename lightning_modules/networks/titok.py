"""TiTok's transformer with latent tokens (Yu et al. 2024, arXiv 2406.07550), single-stage: an image as a row of tokens.

The encoder reads patches and learned latent tokens as one sequence and keeps the latents alone; the decoder reads those
and as many copies of one mask token as there are patches, and keeps the patches.

Shapes: B batch, H W image, P patch size, N = (H / P) (W / P) patches, L latent tokens, D width.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_modules.checks import check_sizes, require

from .base import BackboneConfig, Decoder, Encoder, divided
from .vit import Block, ViTConfig, ViTSize


@dataclass
class TiTokConfig(BackboneConfig):
    """The defaults are the published BL-64: base encoder, large decoder, 64 tokens for 256 x 256 pixels.

    Dims are [blocks, heads, width, MLP width], with heads of width 64: small [8, 8, 512, 2048], base, large.
    """

    name: str = "titok"
    patch_size: int = 16
    num_latents: int = 64  # tokens of an image
    encoder_dims: list[int] = field(default_factory=lambda: [12, 12, 768, 3072])
    decoder_dims: list[int] = field(default_factory=lambda: [24, 16, 1024, 4096])

    def check(self) -> None:
        check_sizes(self)
        for name in ("encoder_dims", "decoder_dims"):
            dims = getattr(self, name)
            require(len(dims) == len(ViTSize._fields), f"{name}={dims} must be [blocks, heads, width, mlp_width]")

    def num_patches(self, image_size: int) -> int:
        """Raises ValueError unless patches cover the image."""
        return divided(image_size, self.patch_size, f"patch_size {self.patch_size}") ** 2


class LatentTransformer(nn.Module):
    """Class token, patches and latents, each with learned positions -> (B, 1 + N + L, D).

    Patches (B, N, D), or (1, 1, D) for all; latents (B, L, D) or (L, D), those of all images.
    """

    def __init__(self, size: ViTSize, num_patches: int, num_latents: int) -> None:
        super().__init__()
        scale = size.width**-0.5
        self.class_token = nn.Parameter(scale * torch.randn(1, size.width))
        self.positions = nn.Parameter(scale * torch.randn(1 + num_patches, size.width))
        self.latent_positions = nn.Parameter(scale * torch.randn(num_latents, size.width))
        self.norm_in = nn.LayerNorm(size.width)
        self.blocks = nn.ModuleList(Block(size, ViTConfig(), projects=True) for _ in range(size.blocks))

    def forward(self, batch_size: int, patches: Tensor, latents: Tensor) -> Tensor:
        parts = self.class_token + self.positions[:1], patches + self.positions[1:], latents + self.latent_positions
        x = self.norm_in(torch.cat([part.expand(batch_size, -1, -1) for part in parts], 1))  # (B, 1 + N + L, D)
        for block in self.blocks:
            x = block(x)
        return x


def initialise(network: nn.Module) -> None:
    """Weights from a truncated normal distribution of deviation 0.02, zero biases, as in the public code."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class TiTokEncoder(Encoder):
    """Image (B, 3, H, W) in [-1, 1] to a row of latents (B, 1, L, D), with H = W = `image_size` and D = `width`.

    Raises:
        ValueError: `image_size` is not divisible by the patch size.
    """

    def __init__(self, config: TiTokConfig, image_size: int) -> None:
        super().__init__()
        size = ViTSize(*config.encoder_dims)
        self.width, self.image_size, self.num_latents = size.width, image_size, config.num_latents
        self.patch_embedding = nn.Conv2d(3, size.width, config.patch_size, stride=config.patch_size)
        self.latents = nn.Parameter(size.width**-0.5 * torch.randn(config.num_latents, size.width))
        self.transformer = LatentTransformer(size, config.num_patches(image_size), config.num_latents)
        self.norm = nn.LayerNorm(size.width)
        initialise(self)

    @property
    def grid(self) -> tuple[int, int]:
        return 1, self.num_latents

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)  # (B, N, D)
        x = self.transformer(len(image), patches, self.latents)
        return self.norm(x[:, -self.num_latents :]).unsqueeze(1)  # (B, 1, L, D)


class TiTokDecoder(Decoder):
    """A row of latents (B, 1, L, D) to an image (B, out_channels, H, W), unbounded but trained towards [-1, 1].

    Raises:
        ValueError: `image_size` is not divisible by the patch size.
    """

    def __init__(self, config: TiTokConfig, image_size: int, out_channels: int = 3) -> None:
        super().__init__()
        size, self.num_patches = ViTSize(*config.decoder_dims), config.num_patches(image_size)
        self.width, self.side = size.width, image_size // config.patch_size
        self.mask_token = nn.Parameter(size.width**-0.5 * torch.randn(1, 1, size.width))
        self.transformer = LatentTransformer(size, self.num_patches, config.num_latents)
        self.norm = nn.LayerNorm(size.width)
        self.pixels = nn.Conv2d(size.width, out_channels * config.patch_size**2, 1)
        self.unfold = nn.PixelShuffle(config.patch_size)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        initialise(self)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the last convolution, where the adaptive adversarial weight compares gradients."""
        return self.conv_out.weight

    def features(self, latents: Tensor) -> Tensor:
        x = self.transformer(len(latents), self.mask_token, latents.squeeze(1))
        x = self.norm(x[:, 1 : 1 + self.num_patches])  # (B, N, D)
        x = x.transpose(1, 2).unflatten(2, (self.side, self.side))  # (B, D, H / P, W / P)
        return self.unfold(self.pixels(x))  # (B, out_channels, H, W)

    def to_pixels(self, features: Tensor) -> Tensor:
        return self.conv_out(features)
