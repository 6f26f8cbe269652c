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
from datamodules.base import Batch, DataConfig, say_once
from datamodules.decoding import VERSION, read_image
from datamodules.folders import (
    SPLITS,
    FolderDataModule,
    ImageList,
    class_names,
    image_files,
    is_image,
    list_images,
    split_off,
)
from lightning_modules.checks import one_of, require
from lightning_modules.distributed import own_random_numbers
from lightning_modules.options import neutral, no_identity, place


@dataclass
class ImageFolderConfig(DataConfig):
    """Images in ``<data_dir>/<train_folder>`` and ``<data_dir>/<val_folder>``, in class folders or not.

    Where there is neither of these, the images of ``data_dir`` itself are split, see `val_share`.

    Defaults are VQGAN-LC's: shorter side to 256, random crop in training, centre crop in validation, no flip.
    """

    name: str = "image_folder"
    dataset: str = place()  # the images are in <data_dir>/<dataset>, for example ffhq; "" = in data_dir itself
    image_size: int = 256
    train_folder: str = no_identity("train")  # a place, like val_folder: the contents of the images count
    val_folder: str = no_identity("val")
    val_share: float = neutral(0.1)  # for validation, of images that are in no folders of training and validation
    class_folders: bool = True  # False: no labels (all 0), subfolders are only folders
    resize: str = (
        "shorter"  # "shorter" side to image_size, or "squash" to a square, as enhancing-transformers' validation
    )
    random_crop: bool = True  # training; False = centre crop
    augment: str = neutral("")  # training: "mae", in place of random_crop: random resized crop and RandAugment

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        super().check()
        one_of(self, "augment", ("", "mae"))
        require(0 < self.val_share < 1, f"val_share={self.val_share} must be between 0 and 1")


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
    """Images in folders; labels are the class folders of the training images, in the order of `class_names`."""

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
    def reading(self) -> list[str]:
        return [f"decoding {VERSION}"]

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / ".fingerprints"

    @cached_property
    def is_unsplit(self) -> bool:
        """Whether images are in `data_dir` itself, and folders of training and validation neither there nor named."""
        names, root = (self.config.train_folder, self.config.val_folder), self.data_dir
        is_plain = names == SPLITS and root.is_dir() and not any((root / name).is_dir() for name in names)
        return is_plain and any(image_files(root))

    def folder(self, split: str) -> Path:
        if self.is_unsplit:
            return self.data_dir
        return self.data_dir / (self.config.train_folder if split == "train" else self.config.val_folder)

    def kept_name(self, split: str) -> str:
        """One of its own for train/images and for val/images."""
        if self.is_unsplit:
            return f"split-{split}.files.npz"
        return os.path.relpath(self.folder(split), self.data_dir).replace(os.sep, "--") + ".files.npz"

    @cached_property
    def files(self) -> dict[str, ImageList]:
        if not self.is_unsplit:
            return super().files
        for name in class_names(self.data_dir):
            if any((self.data_dir / name / split).is_dir() for split in SPLITS):
                raise ValueError(f"{self.data_dir}: holds data sets, such as {name}: choose one by data.dataset={name}")
        images = list_images(self.data_dir, self.config.class_folders)
        advice = "add some, or hand them to `reconstruct PATHS` or `tokenize --images`, which take any number"
        require(len(images.paths) >= 3, f"{self.data_dir}: {len(images.paths)} images are too few to split: {advice}")
        return split_off(images, self.data_dir, self.config.val_share)

    def list_files(self, split: str) -> ImageList:
        return list_images(self.folder(split), self.config.class_folders, self.classes if split == "val" else None)

    def prepare_data(self) -> None:
        """Check that the folders are there, that validation has no other classes, and say what is unusual.

        Raises:
            FileNotFoundError: a folder is missing.
            ValueError: validation images of classes that training has not, or folders of several data sets.
        """
        if not self.is_unsplit:
            self.check_classes(self.folder("val"))
        sizes = {split: len(self.files[split].paths) for split in SPLITS}
        if self.is_unsplit:
            text = f"of its images, in {self.num_classes} class(es), {sizes['train']} train and {sizes['val']} validate"
            say_once(f"{self.data_dir}: has no folders {' and '.join(SPLITS)}: {text}")
        for folder in sorted({self.folder(split) for split in SPLITS} if self.classes else ()):
            if number := sum(1 for path in folder.iterdir() if is_image(path.name) and path.is_file()):
                advice = "data.class_folders=false reads all, without labels"
                say_once(f"{folder}: {number} images beside the class folders are not read; {advice}")
        counts = self.files["val"].labels.bincount(minlength=len(self.classes)).tolist()
        if bare := [name for name, count in zip(self.classes, counts, strict=False) if not count]:
            named, total = ", ".join(bare[:5]), len(self.classes)
            say_once(f"{self.folder('val')}: no images of {len(bare)} of {total} classes ({named}) to validate")

    def check_classes(self, folder: Path) -> None:
        """Raises ValueError for validation images of classes that training has not, FileNotFoundError for no folder."""
        names, classes = class_names(folder), self.classes
        others = [name for name in names if self.config.class_folders and name not in classes]
        if others := [name for name in others if any(image_files(folder / name))]:
            raise ValueError(
                f"{folder}: class folders {others[:5]} ({len(others)} in all) are not among those of training: sort "
                "both into the same classes, or set data.class_folders=false"
            )

    def load(self, split: str) -> FileDataset:
        files = self.files[split]
        index, transform = self.subset(files.labels, split), self.transform(split == "train")
        return FileDataset([files.paths[i] for i in index.tolist()], files.labels[index], transform)

    def transform(self, train: bool) -> Callable[[Image.Image], Tensor]:
        """RGB image to (3, image_size, image_size) uint8. PIL's bicubic filter is antialiased."""
        size = self.config.image_size
        flip = v2.RandomHorizontalFlip(0.5 if train and self.config.flip else 0.0)
        if train and self.config.augment:
            # Departs from MAE: torchvision's RandAugment, of fixed magnitude, in place of timm's m9-mstd0.5-inc1.
            bicubic = v2.InterpolationMode.BICUBIC
            crop = v2.RandomResizedCrop(size, interpolation=bicubic)
            return v2.Compose([crop, flip, v2.RandAugment(2, 27, 31, bicubic, [124, 116, 104]), v2.PILToTensor()])
        crop = v2.RandomCrop(size) if train and self.config.random_crop else v2.CenterCrop(size)
        return v2.Compose(
            [
                v2.Resize(size if self.config.resize == "shorter" else (size, size), v2.InterpolationMode.BICUBIC),
                crop,
                flip,
                v2.PILToTensor(),
            ]
        )
