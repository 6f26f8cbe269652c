"""ImageNet, FFHQ or any folder of images, decoded on the fly.

Shapes: B images a batch, H = W = image_size.
"""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datamodules.arrays import to_unit_range
from datamodules.base import Batch, DataConfig
from datamodules.folders import FolderDataModule, ImageList, class_names, list_images, read_image
from lightning_modules.distributed import own_random_numbers
from lightning_modules.options import no_identity, place


@dataclass
class ImageFolderConfig(DataConfig):
    """Images in ``<data_dir>/<train_folder>`` and ``<data_dir>/<val_folder>``, in class folders or not.

    Defaults are VQGAN-LC's: shorter side to 256, random crop in training, centre crop in validation, no flip.
    """

    name: str = "image_folder"
    dataset: str = place()  # the images are in <data_dir>/<dataset>, for example ffhq; "" = in data_dir itself
    image_size: int = 256
    train_folder: str = no_identity("train")  # a place, like val_folder: the contents of the images count
    val_folder: str = no_identity("val")
    class_folders: bool = True  # False: no labels (all 0), subfolders are only folders
    resize: str = (
        "shorter"  # "shorter" side to image_size, or "squash" to a square, as enhancing-transformers' validation
    )
    random_crop: bool = True  # training; False = centre crop


class FileDataset(Dataset[Batch]):
    """Image files, decoded when asked for.

    Args:
        paths: N files.
        labels: (N,) int64.
        transform: RGB image to (3, H, W) uint8.
    """

    is_decoded = True

    def __init__(self, paths: list[str], labels: Tensor, transform: Callable[[Image.Image], Tensor]):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The DataLoader's batched fetch: {"image": (B, 3, H, W) in [-1, 1], "label": (B,)}."""
        with own_random_numbers(torch.device("cpu")):  # each image draws a number of them that depends on its size
            images = torch.stack([self.transform(read_image(self.paths[i])) for i in indices])  # (B, 3, H, W)
        return {"image": to_unit_range(images), "label": self.labels[torch.as_tensor(indices)]}

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


class ImageFolderDataModule(FolderDataModule):
    """Images in folders; labels are the class folders of the training images in sorted order."""

    config: ImageFolderConfig

    def __init__(self, config: ImageFolderConfig, data_dir: str, num_workers: int = 0, seed: int = 0):
        super().__init__(config, data_dir, num_workers, seed)
        self.data_dir = self.data_dir / config.dataset
        if config.resize not in ("shorter", "squash"):
            raise ValueError(f'data.resize={config.resize}: choose "shorter" or "squash"')
        if config.resize == "squash" and config.random_crop:
            warnings.warn("data.random_crop has no effect with data.resize=squash: nothing is cut off", stacklevel=2)

    @cached_property
    def classes(self) -> list[str]:
        """Names of the class folders; [] without labels."""
        names = class_names(self.folder("train"))
        return names if self.config.class_folders else []

    @property
    def num_classes(self) -> int:
        return max(1, len(self.classes))

    @property
    def kind(self) -> str:
        """Squashed images are other data than images cut to a square; so are images without labels."""
        config = self.config
        return "image_folder" + "-squash" * (config.resize == "squash") + "-flat" * (not config.class_folders)

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / ".fingerprints"

    def folder(self, split: str) -> Path:
        return self.data_dir / (self.config.train_folder if split == "train" else self.config.val_folder)

    def kept_name(self, split: str) -> str:
        """One of its own for train/images and for val/images."""
        return os.path.relpath(self.folder(split), self.data_dir).replace(os.sep, "--") + ".files.npz"

    def list_files(self, split: str) -> ImageList:
        return list_images(self.folder(split), self.config.class_folders)

    def prepare_data(self) -> None:
        """Check that the folders are there and have the same classes.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: the classes of the two differ.
        """
        val_classes = class_names(self.folder("val"))
        if self.config.class_folders and val_classes != self.classes:
            differ = sorted(set(val_classes) ^ set(self.classes))
            raise ValueError(
                f"{self.data_dir}: {self.config.train_folder} and {self.config.val_folder} differ in class folders "
                f"{differ[:5]} ({len(differ)} in all): sort both into the same classes, or set data.class_folders=false"
            )

    def load(self, split: str) -> FileDataset:
        files = self.files[split]
        index, transform = self.subset(files.labels, split), self.transform(split == "train")
        return FileDataset([files.paths[i] for i in index.tolist()], files.labels[index], transform)

    def transform(self, train: bool) -> Callable[[Image.Image], Tensor]:
        """RGB image to (3, image_size, image_size) uint8. PIL's bicubic filter is antialiased."""
        size = self.config.image_size
        crop = v2.RandomCrop(size) if train and self.config.random_crop else v2.CenterCrop(size)
        return v2.Compose(
            [
                v2.Resize(size if self.config.resize == "shorter" else (size, size), v2.InterpolationMode.BICUBIC),
                crop,
                v2.RandomHorizontalFlip(0.5 if train and self.config.flip else 0.0),
                v2.PILToTensor(),
            ]
        )
