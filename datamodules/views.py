"""Several fixed views of every image, for tokens that are made once and read in every epoch."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.arrays import to_unit_range
from datamodules.base import Batch
from datamodules.decoding import read_image
from datamodules.image_folder import FileDataset


class ViewDataset(Dataset[Batch]):
    """Images of a dataset, each in V views.

    Args:
        images: not augmented; its ``__getitems__`` returns batches.
        views: V of "plain", "mirrored" (left to right) and, after these, "crop".
        crop: RGB image to (3, H, W) uint8 by torch's global generator; needed for "crop", of image files only.
        seed: of the crops; each depends on (seed, image, view) alone, the image counted in the dataset's order.
    """

    def __init__(
        self,
        images: Dataset[Batch],
        views: Sequence[str],
        crop: Callable[[Image.Image], Tensor] | None = None,
        seed: int = 0,
    ):
        self.images, self.views, self.crop, self.seed = images, views, crop, seed

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """{"image": (B, V, 3, H, W) float32 in [-1, 1], "label": (B,) int64}."""
        batch: Batch = self.images.__getitems__(indices)  # type: ignore[attr-defined]
        plain, mirrored = batch["image"], batch["image"].flip(-1)  # (B, 3, H, W)
        fixed = [mirrored if view == "mirrored" else plain for view in self.views if view != "crop"]
        images = torch.stack(fixed, 1)  # (B, V, 3, H, W), still without crops
        if crops := range(len(fixed), len(self.views)):
            images = torch.cat([images, torch.stack([self.cropped(index, crops) for index in indices])], 1)
        return {"image": images, "label": batch["label"]}

    def cropped(self, index: int, views: range) -> Tensor:
        """The crops (len(views), 3, H, W) of one image file."""
        assert isinstance(self.images, FileDataset) and self.crop is not None
        picture, crops = read_image(self.images.paths[index]), []
        with torch.random.fork_rng(devices=[]):
            for view in views:
                seed = np.random.SeedSequence((self.seed, index, view)).generate_state(1, np.uint64)
                torch.default_generator.manual_seed(int(seed[0]))
                crops.append(self.crop(picture))
        return to_unit_range(torch.stack(crops))
