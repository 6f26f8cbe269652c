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
    image_size: int

    def fits(self, height: int, width: int) -> bool:
        """Whether images of this size can be encoded."""
        return height == width == self.image_size

    @property
    def sizes(self) -> str:
        """The sizes that fit, in words."""
        return f"{self.image_size} x {self.image_size} pixels"

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless these are (B, 3, H, W) floats of a size that fits."""
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or not self.fits(*shape[2:]):
            raise ValueError(f"images of shape {shape} do not fit: this model takes (B, 3, H, W) of {self.sizes}")
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: this model takes floats in [-1, 1]")


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
