"""Stage 2's data: token ids made once by `experiments.tokenize`, read from disk as they are needed.

Shapes: B images a batch, N images of a split, V views of each, T = h * w tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.base import Batch, BatchDataModule
from datamodules.resumable import ResumableSampler
from datamodules.token_files import EncodedMeta, LatentMeta, TokenMeta, check_files, open_values, read_labels, read_meta
from lightning_modules.checks import home_expanded


@dataclass
class TokensConfig:
    """A folder that `experiments.tokenize` has finished. With several views, each epoch draws one of every image."""

    name: str = "tokens"
    path: str = ""
    batch_size: int = 64  # global: shared out over all devices; `optimizer.accumulate` of them make a step
    val_batch_size: int = 64  # per device
    train_size: int | None = None  # class-balanced subset; None = all images
    val_size: int | None = None
    data_seed: int = 0  # picks the subsets; the images' own seed picks the images that their datamodule would


class TokenDataset(Dataset[Batch]):
    """Rows of a split, V consecutive ones an image, handed out a whole batch at a time.

    Args:
        folder, meta, split: where the tokens are.
        index: (n,) int64, the images to serve, in this order.
    """

    def __init__(self, folder: Path, meta: EncodedMeta, split: str, index: Tensor):
        self.folder, self.meta, self.split = folder, meta, split
        self.index = index.numpy()
        self.labels = torch.from_numpy(read_labels(folder, meta, split)[self.index])  # (n,)
        self.num_views = len(meta.views[split])

    def part(self, positions: Tensor) -> "TokenDataset":
        """Only the images at these positions (n,), of those served."""
        return TokenDataset(self.folder, self.meta, self.split, torch.from_numpy(self.index)[positions])

    @cached_property
    def values(self) -> np.memmap:
        """(N, V, T) int32."""
        return open_values(self.folder, self.meta, self.split)

    def __getstate__(self) -> dict[str, Any]:
        """Worker processes open the file themselves; pickling the map would copy all of it."""
        return {key: value for key, value in self.__dict__.items() if key != "values"}

    def __len__(self) -> int:
        return len(self.index) * self.num_views

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The DataLoader's batched fetch: {"tokens": (B, T), "label": (B,)} of the rows image * V + view."""
        image, view = np.divmod(np.asarray(indices), self.num_views)  # (B,), (B,)
        values = self.values[self.index[image], view].astype(self.meta.served)  # (B, T)
        return {self.meta.kind: torch.from_numpy(values), "label": self.labels[torch.from_numpy(image)]}

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


class ViewSampler(ResumableSampler):
    """Shuffled images, of each the row of one view: which one depends on (seed, epoch, image) alone.

    Args:
        num_images, num_views: the table has num_images * num_views rows.
        num_replicas, rank, seed: as those of DistributedSampler.
    """

    def __init__(self, num_images: int, num_views: int, num_replicas: int, rank: int, seed: int):
        super().__init__(range(num_images), num_replicas, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.num_views = num_views

    def __iter__(self) -> Iterator[int]:
        views = np.random.default_rng((self.seed, self.epoch)).integers(self.num_views, size=len(self.dataset))  # type: ignore[arg-type]
        return (image * self.num_views + int(views[image]) for image in super().__iter__())


class TokensDataModule(BatchDataModule):
    """{"tokens": (B, T) int64, "label": (B,) int64} of a finished token folder; order as `BatchDataModule`'s.

    With the same seeds and sizes, batch for batch the same images as the image datamodule the tokens come from.

    Args:
        config: the folder, batches and subsets.
        num_workers: loader processes; 0 is fastest while the file fits the page cache.
        seed: of the training order and the views.
    """

    config: TokensConfig
    meta_class: ClassVar[type[EncodedMeta]] = TokenMeta

    def __init__(self, config: TokensConfig, num_workers: int = 0, seed: int = 0):
        super().__init__(config, num_workers, seed)
        self.folder = Path(home_expanded(config.path))

    @cached_property
    def meta(self) -> Any:
        """Raises ValueError when the folder is missing, not finished or not readable."""
        if not self.config.path:
            raise ValueError("data.path is empty: set it to a folder made by `python -m experiments.tokenize`")
        return read_meta(self.folder, self.meta_class)

    @property
    def num_classes(self) -> int:
        return self.meta.num_classes

    @property
    def data_id(self) -> str:
        """The `data_id` of the images."""
        return self.meta.data_id

    @property
    def codebook_size(self) -> int:
        return self.meta.codebook_size

    @property
    def grid_size(self) -> tuple[int, int]:
        height, width = self.meta.grid_size
        return height, width

    @property
    def tokenizer_digest(self) -> str:
        return self.meta.tokenizer_digest

    def setup(self, stage: str | None = None) -> None:
        """Checks every file once, values included. Raises ValueError that names the file at fault."""
        if self.val_set is None:
            check_files(self.folder, self.meta)
        super().setup(stage)

    def load(self, split: str) -> TokenDataset:
        labels = torch.from_numpy(read_labels(self.folder, self.meta, split))
        return TokenDataset(self.folder, self.meta, split, self.subset(labels, split))

    def subset(self, labels: Tensor, split: str) -> Tensor:
        """Indices (n,) of the images to serve; with the images' own data_seed the first n, which are dealt by class."""
        chosen = super().subset(labels, split)
        return torch.arange(len(chosen)) if self.config.data_seed == self.meta.data["data_seed"] else chosen

    def train_sampler(self, num_replicas: int, rank: int, seed: int) -> ResumableSampler:
        train_set = self.train_set
        assert isinstance(train_set, TokenDataset)
        return ViewSampler(len(train_set.index), train_set.num_views, num_replicas, rank, seed)


class LatentsDataModule(TokensDataModule):
    """{"latents": (B, d, h, w) float32, "label": (B,) int64} of a finished folder, whatever they are kept as."""

    meta_class = LatentMeta
