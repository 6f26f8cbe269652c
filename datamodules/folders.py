"""Images in folders, one folder a class: listing, decoding and identity, with errors that name the file."""

import hashlib
import os
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.fingerprint import fingerprint

SPLITS = ("train", "val")
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class ImageList(NamedTuple):
    """N files in a fixed order."""

    paths: list[str]  # N
    labels: Tensor  # (N,) int64, index into classes
    classes: list[str]


def class_names(folder: Path) -> list[str]:
    """Names of the class folders of ``folder`` in order, hidden ones left out.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; put the images there, or set data_dir to where they are")
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path, class_folders: bool = True) -> ImageList:
    """All images below ``folder``, in sorted order, labelled by the class folder they are in (at any depth).

    A folder without subfolders is one class; so is everything with ``class_folders=False``.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a class folder, or the whole folder, holds no image.
    """
    classes = class_names(folder)
    roots = [folder / name for name in classes] if class_folders and classes else [folder]
    paths: list[str] = []
    counts = []
    for root in roots:
        found = sorted(
            os.path.join(parent, name)
            for parent, _, names in os.walk(root)
            for name in names
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
        )
        if not found:
            raise ValueError(f"{root}: holds no image ({', '.join(IMAGE_SUFFIXES)}); add some or delete the folder")
        paths += found
        counts.append(len(found))
    labels = torch.arange(len(roots)).repeat_interleave(torch.tensor(counts))  # (N,)
    return ImageList(paths, labels, [root.name for root in roots])


def read_image(path: str) -> Image.Image:
    """Decode one file to RGB.

    Raises:
        ValueError: the file is missing, damaged or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:  # by format PIL raises OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(f"{path}: cannot be decoded ({error}); copy it again from its source or delete it") from error


class FolderDataModule(ImageDataModule):
    """Images that are files in one folder a split. `data_id` depends on their contents, not on the place."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """The images' name in `data_id`, before their fingerprint."""

    @property
    @abstractmethod
    def cache_dir(self) -> Path:
        """The folder for files made from the images, such as their digests."""

    @abstractmethod
    def folder(self, split: str) -> Path:
        """The folder of split "train" or "val"."""

    @abstractmethod
    def list_files(self, split: str) -> ImageList:
        """All images of a split. Raises ValueError or FileNotFoundError for a folder that is not as it should be."""

    @cached_property
    def files(self) -> dict[str, ImageList]:
        """The files by split."""
        return {split: self.list_files(split) for split in SPLITS}

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """32 hex digits by split, see `fingerprint`."""
        return {
            split: fingerprint(files.paths, self.folder(split), self.cache_dir, self.kept_name(split))
            for split, files in self.files.items()
        }

    def kept_name(self, split: str) -> str:
        """Of the file in `cache_dir` that keeps the fingerprints."""
        return f"{self.folder(split).name}.files.npz"

    @property
    def data_id(self) -> str:
        """KIND-12345678: the images' kind and 8 hex digits of their contents and relative paths."""
        digits = hashlib.sha256(" ".join(self.fingerprints.values()).encode()).hexdigest()[:8]
        return f"{self.kind}-{digits}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "name": self.data_dir.resolve().name,
            "num_images": {split: len(files.paths) for split, files in self.files.items()},
            "fingerprint": self.fingerprints,
        }
