"""Images in folders, one folder a class: listing and decoding, with errors that name the file."""

import os
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

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
