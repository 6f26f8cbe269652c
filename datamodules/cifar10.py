"""CIFAR-10: torchvision's binary release or a class-folder export, held in memory as uint8.

Shapes: N images of a split, H = W = 32 as stored.
"""

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from datamodules.arrays import ArrayDataset
from datamodules.base import DataConfig
from datamodules.cache import cached
from datamodules.decoding import VERSION, read_image
from datamodules.folders import FolderDataModule, ImageList, class_names, list_images
from lightning_modules.checks import home_expanded
from lightning_modules.options import no_identity

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
SIZE = 32
DOWNLOAD_TIMEOUT = 10.0  # seconds without an answer


@dataclass
class CIFAR10Config(DataConfig):
    """50,000 training and 10,000 test images in ten classes; the test images are the validation set.

    With another ``image_size`` they are resized once (bicubic, antialiased): N * 3 * image_size^2 bytes of memory.
    """

    name: str = "cifar10"
    image_size: int = 32
    download: bool = no_identity(True)  # fetch the binary release if data_dir holds neither form


def find_cifar10(data_dir: str | Path) -> str | None:
    """Which form of CIFAR-10 is in ``data_dir``: "binary", "export" or None. Looks at names only."""
    data_dir = Path(home_expanded(data_dir))
    files = [name for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]] + [CIFAR10.meta["filename"]]
    if all((data_dir / CIFAR10.base_folder / name).is_file() for name in files):
        return "binary"
    if all((data_dir / "cifar10" / split).is_dir() for split in ("train", "test")):
        return "export"
    return None


class CIFAR10DataModule(FolderDataModule):
    """CIFAR-10 from ``<data_dir>/cifar-10-batches-py`` or ``<data_dir>/cifar10/{train,test}/<class>/``.

    An export (JPEG or PNG) is decoded once and kept in ``<data_dir>/cifar10-cache``.
    """

    num_classes = len(CLASSES)
    classes = CLASSES
    config: CIFAR10Config

    @property
    def kind(self) -> str:
        """JPEG is lossy, so export and release are not the same data."""
        return "cifar10-export"

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / "cifar10-cache"

    def folder(self, split: str) -> Path:
        return self.data_dir / "cifar10" / ("train" if split == "train" else "test")

    def origin(self, split: str) -> str:
        return str(self.data_dir)

    @property
    def is_export(self) -> bool:
        return find_cifar10(self.data_dir) == "export"

    @property
    def data_id(self) -> str:
        """The release needs no fingerprint: its checksums are compared whenever it is read."""
        return super().data_id if self.is_export else "cifar10-binary"

    @property
    def facts(self) -> dict[str, Any]:
        return (
            super().facts | {"name": "cifar10-export"} if self.is_export else {"name": "cifar10"} | self.named_classes
        )

    def prepare_data(self) -> None:
        """Download or decode, on one process a machine.

        Raises:
            FileNotFoundError: the data is not there, and ``download`` is off or fails.
            ValueError: an export is incomplete or damaged.
        """
        if self.val_set is not None:  # set up already; Lightning asks again before each of its loops
            return
        form = find_cifar10(self.data_dir)
        if form == "export":
            for split in ("train", "val"):
                self._read_export(split)
        elif form is None and not self.config.download:
            raise FileNotFoundError(f"data.download is off and {self._advice()}")
        elif form is None:
            try:
                with socket_timeout(DOWNLOAD_TIMEOUT):
                    CIFAR10(str(self.data_dir), download=True)
            except (OSError, RuntimeError, HTTPException) as error:
                raise FileNotFoundError(f"CIFAR-10 cannot be downloaded ({error}), and {self._advice()}") from error

    def load(self, split: str) -> ArrayDataset:
        form = find_cifar10(self.data_dir)
        if form is None:
            raise FileNotFoundError(f"prepare_data() has not run and {self._advice()}")
        images, labels = self._read_binary(split) if form == "binary" else self._read_export(split)
        index = self.subset(labels, split)
        images = resize_all(images[index], self.config.image_size)  # (n, 3, image_size, image_size)
        return ArrayDataset(images, labels[index], flip=self.config.flip and split == "train")

    def _advice(self) -> str:
        return (
            f"neither {self.data_dir / CIFAR10.base_folder} (unpacked {CIFAR10.filename}) nor "
            f"{self.data_dir / 'cifar10'}/{{train,test}}/<class>/*.jpg|png is complete: unpack one of them there, set "
            "data_dir to where it is, or use data=shapes, which needs no files"
        )

    def _read_binary(self, split: str) -> tuple[Tensor, Tensor]:
        try:
            source = CIFAR10(str(self.data_dir), train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"{self.data_dir / CIFAR10.base_folder}: damaged ({error}); "
                f"delete it and unpack {CIFAR10.filename} again"
            ) from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()  # (N, 3, 32, 32)
        return images, torch.tensor(source.targets)

    def list_files(self, split: str) -> ImageList:
        folder = self.folder(split)
        if (found := class_names(folder)) != CLASSES:
            missing, surplus = sorted(set(CLASSES) - set(found)), sorted(set(found) - set(CLASSES))
            raise ValueError(f"{folder}: class folders missing: {missing}, not of CIFAR-10: {surplus}; unpack it again")
        return list_images(folder)

    def _read_export(self, split: str) -> tuple[Tensor, Tensor]:
        files = self.files[split]
        arrays = cached(
            self.cache_dir,
            f"{self.folder(split).name}.npz",
            f"{self.fingerprints[split]} decoding {VERSION}",
            lambda: {"images": decode(files.paths), "labels": files.labels.numpy()},
        )
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"])


def decode(paths: list[str]) -> np.ndarray:
    """Read N images of 32 x 32 pixels with a thread a core: (N, 3, 32, 32) uint8.

    Raises:
        ValueError: an image is damaged or has another size.
    """
    images = np.empty((len(paths), 3, SIZE, SIZE), dtype=np.uint8)

    def read(position: int) -> None:
        image = read_image(paths[position])
        if image.size != (SIZE, SIZE):
            raise ValueError(
                f"{paths[position]}: {image.width} x {image.height} pixels, CIFAR-10 has {SIZE} x {SIZE}; "
                "replace it, or read other images with data=image_folder"
            )
        images[position] = np.asarray(image).transpose(2, 0, 1)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(read, range(len(paths))):  # consumed, so that errors are raised
            pass
    return images


def resize_all(images: Tensor, size: int) -> Tensor:
    """(N, 3, H, H) uint8 to (N, 3, size, size), bicubic with antialiasing; H = size is left alone."""
    if images.shape[-1] == size:
        return images
    parts = images.split(1024)  # bounds the working memory
    return torch.cat([resize(part, [size, size], InterpolationMode.BICUBIC, antialias=True) for part in parts])


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let every new connection fail after this long without an answer (torchvision sets no limit itself)."""
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(previous)
