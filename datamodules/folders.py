"""Images in folders, one folder a class: listing and identity, with errors that name the file.

Links to files and folders are followed, but not into a folder that the link is in. Hidden files and folders, and
`CACHES`, hold no images at any depth.
"""

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.fingerprint import fingerprint

SPLITS = ("train", "val")
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
CACHES = ("$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found")  # of thumbnails, archives, file systems


class ImageList(NamedTuple):
    """N files in a fixed order."""

    paths: list[str]  # N
    labels: Tensor  # (N,) int64, index into classes
    classes: list[str]

    def part(self, rows: np.ndarray) -> "ImageList":
        """The files of these rows (n,)."""
        return ImageList([self.paths[row] for row in rows], self.labels[torch.from_numpy(rows)], self.classes)


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or one of `CACHES`."""
    return name.startswith(".") or name in CACHES


def is_image(name: str) -> bool:
    """Whether a file of this name is read, if it is not left out."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_left_out(os.path.basename(name))


def identity(folder: str | Path) -> tuple[int, int]:
    """Tells a folder from all others, whatever link leads to it."""
    info = os.stat(folder)
    return info.st_dev, info.st_ino


def walk(folder: str | Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Paths of all files below `folder` that are not left out; `above` are the identities of the folders it is in.

    Raises PermissionError for a folder that may not be read.
    """
    if (here := identity(folder)) in above:
        return
    for entry in os.scandir(folder):
        if is_left_out(entry.name):
            continue
        if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():
            yield from walk(entry.path, (*above, here))
        else:
            yield entry.path


def image_files(folder: Path) -> Iterator[str]:
    """Paths of the images below `folder`, in the order of the file system; links to the folder that it is in end."""
    return (path for path in walk(folder, (identity(folder.parent),)) if is_image(path))


def class_names(folder: Path) -> list[str]:
    """Names of the class folders of `folder`: in the order of their numbers where all are numbers, else sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; put the images there, or set data_dir to where they are")
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_left_out(entry.name))
    return sorted(names, key=int) if all(name.isdecimal() for name in names) else names


def list_images(folder: Path, class_folders: bool = True, classes: list[str] | None = None) -> ImageList:
    """All images below ``folder``, in sorted order, labelled by the class folder they are in (at any depth).

    A folder without subfolders is one class; so is everything with ``class_folders=False``. Where ``classes`` are
    given, they are the classes, in this order, and need no images here.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a class folder, or the whole folder, holds no image.
    """
    own = class_names(folder)
    names = own if classes is None else classes
    roots = [folder / name for name in names] if class_folders and names else [folder]
    paths: list[str] = []
    counts = []
    for root in roots:
        found = sorted(image_files(root)) if classes is None or root.is_dir() else []
        if not found and classes is None:
            raise no_image(root)
        paths += found
        counts.append(len(found))
    if not paths:
        raise no_image(folder)
    labels = torch.arange(len(roots)).repeat_interleave(torch.tensor(counts))  # (N,)
    return ImageList(paths, labels, [root.name for root in roots])


def no_image(folder: Path) -> ValueError:
    advice = "add some, delete the folder, or set data.class_folders=false"
    return ValueError(f"{folder}: holds no image ({', '.join(IMAGE_SUFFIXES)}); {advice}")


def split_off(images: ImageList, root: Path, share: float) -> dict[str, ImageList]:
    """A split for images that have none: `share` of them, and at least two, are for validation.

    They are picked by their paths below `root` alone, so that more images change little of it, and from each class in
    proportion; a class with a single image keeps it for training.
    """
    names = (os.fsencode(os.path.relpath(path, root)) for path in images.paths)
    digests = np.array([hashlib.blake2b(name, digest_size=8).digest() for name in names], "S8")  # (N,)
    labels = images.labels.numpy()
    by_class = np.lexsort((digests, labels))  # (N,) class by class, shuffled within each
    counts = np.bincount(labels)  # (C,)
    first = (counts.cumsum() - counts)[labels[by_class]]  # (N,) where the class of each begins
    place = np.empty(len(labels))  # in (0, 1) within its class
    place[by_class] = (np.arange(len(labels)) - first + 1) / (counts[labels[by_class]] + 1)
    is_val = np.zeros(len(labels), bool)
    is_val[np.lexsort((digests, place))[: max(2, round(share * len(labels)))]] = True
    return {"train": images.part(np.flatnonzero(~is_val)), "val": images.part(np.flatnonzero(is_val))}


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

    @property
    def reading(self) -> list[str]:
        """What else decides pixels and labels, and so is part of `data_id`, such as the policy of decoding."""
        return []

    @abstractmethod
    def folder(self, split: str) -> Path:
        """The folder of split "train" or "val"."""

    def origin(self, split: str) -> str:
        return str(self.folder(split))

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
        parts = [*self.fingerprints.values(), *self.reading]
        digits = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]
        return f"{self.kind}-{digits}"

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "name": self.data_dir.resolve().name,
            "num_images": {split: len(files.paths) for split, files in self.files.items()},
            "fingerprint": self.fingerprints,
        } | self.named_classes
