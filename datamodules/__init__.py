"""Image data as dicts ``{"image": (B, 3, H, W) float32 in [-1, 1], "label": (B,) int64}``, whatever the source.

Stage 2's ``{"tokens": (B, T) int64, "label": (B,) int64}`` and ``{"latents": (B, d, h, w) float32, ...}`` are not in
`DATAMODULES`: no tokenizer trains on them.
"""

from datamodules.base import DataConfig, ImageDataModule, stratified_subset
from datamodules.cifar10 import CIFAR10Config, CIFAR10DataModule, find_cifar10
from datamodules.heldout import HeldOutDataModule
from datamodules.image_folder import ImageFolderConfig, ImageFolderDataModule
from datamodules.shapes import ShapesConfig, ShapesDataModule
from datamodules.tokens import LatentsDataModule, TokensConfig, TokensDataModule

DATAMODULES: dict[str, tuple[type[ImageDataModule], type[DataConfig]]] = {
    "cifar10": (CIFAR10DataModule, CIFAR10Config),
    "image_folder": (ImageFolderDataModule, ImageFolderConfig),
    "shapes": (ShapesDataModule, ShapesConfig),
}

__all__ = [
    "DATAMODULES",
    "CIFAR10Config",
    "CIFAR10DataModule",
    "DataConfig",
    "HeldOutDataModule",
    "ImageDataModule",
    "ImageFolderConfig",
    "ImageFolderDataModule",
    "LatentsDataModule",
    "ShapesConfig",
    "ShapesDataModule",
    "TokensConfig",
    "TokensDataModule",
    "find_cifar10",
    "stratified_subset",
]
