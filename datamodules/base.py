"""What the datamodules share: subsets, order, batches, loaders.

Shapes: B images a batch, N images in all, H = W = image_size.
"""

import functools
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning import LightningDataModule
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from datamodules.placing import fits_device, loader_processes, on_device, placing_text
from datamodules.resumable import Batch, ResumableLoader, ResumableSampler, SeededBatches
from lightning_modules.checks import at_least_one, home_expanded, require
from lightning_modules.options import no_identity


@functools.cache
@rank_zero_only
def say_once(text: str) -> None:
    """Prints a line on the terminal, beside what the command prints, the first time that a run has it to say."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class DataConfig:
    """Options of every dataset; a dataset's own config adds to them."""

    name: str = "shapes"
    image_size: int = 32
    batch_size: int = 64  # global: shared out over all devices; `optimizer.accumulate` of them make a step
    val_batch_size: int = no_identity(64)  # per device; changes no number, only speed and memory
    train_size: int | None = None  # class-balanced subset; None = all images
    val_size: int | None = None
    flip: bool = False  # random horizontal flip in training
    data_seed: int = 0  # picks the subsets; not the run's seed, so that all seeds of a cell share their data

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        at_least_one(self, "image_size", "batch_size", "val_batch_size")
        require(
            self.val_size is None or self.val_size >= 2, f"val_size={self.val_size} must be null (all) or at least 2"
        )


def stratified_subset(labels: Tensor, size: int | None, seed: int = 0) -> Tensor:
    """Indices of a deterministic, class-balanced subset; a larger subset contains every smaller one.

    The images of each class are put in a seeded order, then dealt out one class after the other: class counts differ by
    one at most, unless a class runs out.

    Args:
        labels: (N,) int64.
        size: images wanted, 1 to N, or None for all.
        seed: of the order within the classes.

    Returns:
        (size,) int64, dealt one class after the other, so that every prefix is class-balanced as well.

    Raises:
        ValueError: size is below 1 or above N.
    """
    size = len(labels) if size is None else size
    if not 1 <= size <= len(labels):
        raise ValueError(
            f"a subset of {size} images was asked of the {len(labels)} there are: "
            f"set train_size / val_size between 1 and {len(labels)}, or to null for all"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))  # (N,)
    order = order[labels[order].argsort(stable=True)]  # (N,) class by class, shuffled within each
    counts = labels.bincount()  # (C,)
    first = (counts.cumsum(0) - counts)[labels[order]]  # (N,) where the class of each begins
    rank = torch.arange(len(labels)) - first  # (N,) position within its class
    return order[rank.argsort(stable=True)[:size]]


def require_full_batch(num_images: int, batch_size: int, origin: str) -> None:
    """Raises ValueError, which begins with `origin`, when there is not one full batch."""
    require(
        num_images >= batch_size,
        f"{origin}: {num_images} training images do not fill one batch of data.batch_size={batch_size}: "
        "raise data.train_size or lower data.batch_size",
    )


def keep_batch(batch: Any) -> Any:
    """collate_fn for datasets whose ``__getitems__`` returns a finished batch."""
    return batch


class BatchConfig(Protocol):
    """What order and batches depend on; a config dataclass states the defaults."""

    batch_size: int
    val_batch_size: int
    train_size: int | None
    val_size: int | None
    data_seed: int


class BatchDataModule(LightningDataModule, ABC):
    """Order and loaders of finished batches; a subclass implements ``load``, ``num_classes`` and ``data_id``.

    Order: epoch e's permutation depends on (seed, e) alone, so a run that restarts at epoch e sees the batches it would
    have seen. Rank r of W takes every W-th image of it, so a global batch holds the same images for any W; so it goes
    in validation, where each image is seen once and ranks may have unequal numbers. Flips and crops use torch's global
    generator, which ``seed_everything`` governs; in loader processes see `SeededBatches`.

    Args:
        config: the dataset's options.
        num_workers: loader processes; -1: as the data and the device need, see `loader_processes`.
        seed: of the training order.
    """

    def __init__(self, config: BatchConfig, num_workers: int = 0, seed: int = 0):
        super().__init__()
        for key in ("batch_size", "val_batch_size"):
            if getattr(config, key) < 1:
                raise ValueError(f"data.{key}={getattr(config, key)}: must be at least 1")
        if num_workers < -1:
            raise ValueError(
                f"runtime.num_workers={num_workers}: must be -1 (as the data needs), 0 (the run's own process loads) "
                "or more"
            )
        self.config, self.num_workers, self.seed = config, num_workers, seed
        self.train_set: Dataset[Batch] | None = None
        self.val_set: Dataset[Batch] | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""

    @property
    @abstractmethod
    def data_id(self) -> str:
        """Names the images by their contents, for result records: numbers of different ids are never compared."""

    def origin(self, split: str) -> str:
        """Where the images of a split are, for errors."""
        return self.data_id

    @abstractmethod
    def load(self, split: str) -> Dataset[Batch]:
        """The images of split "train" or "val", already cut down to the subset."""

    def subset(self, labels: Tensor, split: str) -> Tensor:
        """Indices (n,) int64 of the images that ``train_size`` or ``val_size`` keeps, out of those with labels (N,)."""
        size = self.config.train_size if split == "train" else self.config.val_size
        if size is not None and size > len(labels):
            say_once(f"data.{split}_size={size}: there are {len(labels)} images, all of them are used")
            size = None
        return stratified_subset(labels, size, self.config.data_seed)

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage needs, once."""
        if self.train_set is None and stage in ("fit", None):
            self.train_set = self.load("train")
        if self.val_set is None:
            self.val_set = self.load("val")

    @property
    def world_size(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def device_batch_size(self) -> int:
        """Images a device a step: batch_size / number of devices.

        Raises:
            ValueError: it does not divide evenly.
        """
        if self.config.batch_size % self.world_size:
            raise ValueError(
                f"data.batch_size={self.config.batch_size} is the global batch and cannot be shared out evenly over "
                f"{self.world_size} devices: make it a multiple of {self.world_size}"
            )
        return self.config.batch_size // self.world_size

    @property
    def rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def device(self) -> torch.device:
        """The trainer's; the CPU before there is one."""
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def placing(self, device: torch.device) -> str:
        """Where the training images are when `device` trains, and who makes batches of them."""
        return "" if self.train_set is None else placing_text(self.num_workers, self.train_set, device)

    def _loader(self, dataset: Dataset[Batch], sampler: DistributedSampler[Batch] | None) -> DataLoader[Batch]:
        trains = isinstance(sampler, ResumableSampler)
        num_workers = loader_processes(self.num_workers, dataset, self.device)
        if is_on_gpu := not num_workers and fits_device(dataset, self.device):
            dataset = on_device(dataset, self.device)
        return (ResumableLoader if trains else DataLoader)(
            SeededBatches(dataset, self.seed) if trains and num_workers > 0 else dataset,
            batch_size=self.device_batch_size if trains else self.config.val_batch_size,
            sampler=sampler,
            drop_last=trains,
            num_workers=num_workers,
            collate_fn=keep_batch,
            pin_memory=self.device.type == "cuda" and not is_on_gpu,
            generator=torch.Generator().manual_seed(self.seed),  # an epoch's start leaves the global generator alone
        )

    def train_sampler(self, num_replicas: int, rank: int, seed: int) -> ResumableSampler:
        """The shuffled indices of one rank into the training set; a subclass may choose others."""
        assert self.train_set is not None, "call setup() first"
        return ResumableSampler(self.train_set, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches of equal size; an incomplete last one is dropped.

        Raises:
            ValueError: there is not one full batch.
        """
        assert self.train_set is not None, "call setup() first"
        # torch seeds with seed + epoch; spread out, so that seed 1 at epoch 0 is not seed 0 at epoch 1. Lightning
        # calls set_epoch, and leaves a DistributedSampler (here also of one process) as it is.
        sampler = self.train_sampler(self.world_size, self.rank, self.seed << 20)
        size = len(sampler.dataset)  # type: ignore[arg-type]
        require_full_batch(size, self.config.batch_size, self.origin("train"))
        return self._loader(self.train_set, sampler)

    def ordered_train_dataloader(self, first: int = 0) -> DataLoader[Batch]:
        """Training images from number `first` on, each once, in their stored order; the last batch may be smaller."""
        assert self.train_set is not None, "call setup() first"
        rest = range(first, len(self.train_set))  # type: ignore[arg-type]
        return self._loader(Subset(self.train_set, rest) if first else self.train_set, None)

    def ordered_dataloader(self, dataset: Dataset[Batch], size_key: str) -> DataLoader[Batch]:
        """This rank's images of `dataset`, each once, in a fixed order; `size_key` is the option that limits them.
        Raises ValueError when there are fewer of them than ranks.
        """
        ranks = self.world_size
        if ranks == 1:
            return self._loader(dataset, None)
        if (size := len(dataset)) < ranks:  # type: ignore[arg-type]
            raise ValueError(f"{size} validation images for {ranks} devices: raise {size_key} or use fewer devices")
        return self._loader(dataset, UnrepeatedDistributedSampler(dataset, ranks, self.rank, shuffle=False))

    def val_dataloader(self) -> DataLoader[Batch]:
        """This rank's validation images in a fixed order."""
        assert self.val_set is not None, "call setup() first"
        return self.ordered_dataloader(self.val_set, "data.val_size")

    def ordered_val_dataloader(self) -> DataLoader[Batch]:
        """All validation images, whatever the number of ranks."""
        assert self.val_set is not None, "call setup() first"
        return self._loader(self.val_set, None)


class ImageDataModule(BatchDataModule):
    """Base of the image datamodules.

    Args:
        config: the dataset's options.
        data_dir: folder of the data; unused by rendered data.
        num_workers, seed: see `BatchDataModule`.
    """

    config: DataConfig

    def __init__(self, config: DataConfig, data_dir: str, num_workers: int = 0, seed: int = 0):
        if config.image_size < 1:
            raise ValueError(f"data.image_size={config.image_size}: must be at least 1")
        super().__init__(config, num_workers, seed)
        self.data_dir = Path(home_expanded(data_dir))

    @property
    def facts(self) -> dict[str, Any]:
        """What a record says of its images: name, number of images a split before subsets, fingerprints, classes."""
        return {"name": self.config.name} | self.named_classes

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the order of the labels; [] where they have none."""
        return []

    @property
    def named_classes(self) -> dict[str, list[str]]:
        """The entry of `facts` that tells what the labels mean."""
        return {"classes": self.classes} if self.classes else {}

    def images_key(self, split: str) -> str:
        """Names the images of split "train" or "val", not augmented, for files of their features."""
        config = self.config
        size = config.train_size if split == "train" else config.val_size
        return f"{self.data_id}/{split}{size or ''}/seed{config.data_seed}/{config.image_size}px"
