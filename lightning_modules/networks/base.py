"""What networks of one kind have in common."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_modules.checks import check_sizes, require


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


def divided(image_size: int, factor: int, name: str) -> int:
    """image_size / factor. Raises ValueError, with the factor's `name`, when there is a remainder."""
    require(image_size % factor == 0, f"image_size {image_size} is not divisible by {name}; change either")
    return image_size // factor


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] -> latents (B, *grid, width)."""

    width: int
    grid_size: int  # of latents along one side, where they are a square
    image_size: int
    downsampling: int = 0  # pixels per latent along one side, where all sides fit that it divides; 0: one size fits

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the latents of an image of `image_size`."""
        return self.grid_size, self.grid_size

    def fits(self, height: int, width: int) -> bool:
        """Whether images of this size can be encoded."""
        if not self.downsampling:
            return height == width == self.image_size
        return min(height, width) > 0 and height % self.downsampling == width % self.downsampling == 0

    def fits_grid(self, rows: int, columns: int) -> bool:
        """Whether so many latents can be those of an image."""
        return min(rows, columns) > 0 if self.downsampling else (rows, columns) == self.grid

    @property
    def sizes(self) -> str:
        """The sizes that fit, in words."""
        if not self.downsampling:
            return f"{self.image_size} x {self.image_size} pixels"
        return f"sides that {self.downsampling} divides (trained at {self.image_size})"

    def check_images(self, images: Tensor) -> None:
        """Raises ValueError unless these are (B, 3, H, W) floats of a size that fits."""
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != 3 or not self.fits(*shape[2:]):
            raise ValueError(f"images of shape {shape} do not fit: this model takes (B, 3, H, W) of {self.sizes}")
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}: this model takes floats in [-1, 1]")


class Decoder(nn.Module, ABC):
    """Latents (B, *grid, width) -> image (B, out_channels, H, W)."""

    width: int

    @abstractmethod
    def features(self, latents: Tensor) -> Tensor:
        """All but the last layer: latents (B, *grid, width) -> (B, C, h, w)."""

    @abstractmethod
    def to_pixels(self, features: Tensor) -> Tensor:
        """The last layer: (B, C, h, w) -> image (B, out_channels, H, W)."""

    def forward(self, latents: Tensor) -> Tensor:
        return self.to_pixels(self.features(latents))

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The last weight, where the adaptive adversarial weight compares gradients."""
