"""What networks of one kind have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.checks import check_sizes


@dataclass
class BackboneConfig:
    """An encoder and decoder pair; `name` is a key of `networks.BACKBONES`."""

    name: str = ""

    def check(self) -> None:
        check_sizes(self)


@dataclass
class DiscriminatorConfig:
    """A discriminator; `name` is a key of `networks.DISCRIMINATORS`."""

    name: str = ""

    def check(self) -> None:
        check_sizes(self)


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> latents (B, grid_size, grid_size, width)."""

    width: int
    grid_size: int


class Decoder(nn.Module, ABC):
    """Latents (B, grid_size, grid_size, width) -> image (B, out_channels, H, W)."""

    width: int
    grid_size: int

    @abstractmethod
    def features(self, latents: Tensor) -> Tensor:
        """All but the last layer: latents (B, grid_size, grid_size, width) -> (B, C, h, w)."""

    @abstractmethod
    def to_pixels(self, features: Tensor) -> Tensor:
        """The last layer: (B, C, h, w) -> image (B, out_channels, H, W)."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.to_pixels(self.features(latents))

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The last weight, where the adaptive adversarial weight compares gradients."""
