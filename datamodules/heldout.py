"""Training images that are held out of training, for choices that must not be made on the test images."""

from typing import Any

from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset, Subset

from datamodules.base import Batch, BatchDataModule, stratified_subset
from datamodules.tokens import TokenDataset


class HeldOutDataModule(LightningDataModule):
    """The loaders of `data`: training without the held-out images, which are the first of two validation loaders.

    Args:
        data: set up; its training set shrinks.
        plain: the same training images, or their tokens, not augmented and in the same order.
        labels: of these images, (N,) int64.
        size: images to hold out, class-balanced, picked by the data's own seed alone.
    """

    def __init__(self, data: BatchDataModule, plain: Dataset[Batch], labels: Tensor, size: int):
        super().__init__()
        assert data.train_set is not None, "call setup() first"
        chosen = stratified_subset(labels, size, data.config.data_seed)
        is_kept = labels.new_ones(len(labels), dtype=bool)  # type: ignore[call-overload]
        is_kept[chosen] = False
        kept = is_kept.nonzero().flatten()
        self.data, self.heldout = data, Subset(plain, chosen.tolist())
        whole = data.train_set
        data.train_set = whole.part(kept) if isinstance(whole, TokenDataset) else Subset(whole, kept.tolist())

    def train_dataloader(self) -> Any:
        self.data.trainer = self.trainer  # its number of devices and rank
        return self.data.train_dataloader()

    def val_dataloader(self) -> list[Any]:
        """Held-out training images, then validation images."""
        self.data.trainer = self.trainer
        return [self.data.ordered_dataloader(self.heldout, "model.heldout"), self.data.val_dataloader()]
