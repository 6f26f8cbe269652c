"""Images held in memory: in the host's, or as uint8 in the memory of the GPU that trains, which then makes the batches.

Shapes: B images a batch, N images in all, H = W = image_size.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.resumable import Batch
from lightning_modules.distributed import draw_rows


def to_unit_range(images: Tensor) -> Tensor:
    """uint8 in [0, 255] to float32 in [-1, 1], same shape."""
    return images.float().div_(127.5).sub_(1)


class ArrayDataset(Dataset[Batch]):
    """uint8 images held in memory and handed out a whole batch at a time, on the device that holds them.

    The numbers are the same on every device, bit for bit.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
        flip: mirror each image with probability 1/2, by torch's global generator, that of the CPU on every device,
            drawn for the global batch.
    """

    def __init__(self, images: Tensor, labels: Tensor, flip: bool = False):
        self.images, self.labels, self.flip = images, labels, flip
        self.half_range = torch.tensor(127.5, device=images.device)  # a GPU divides by a Python number inexactly

    def to(self, device: torch.device) -> Self:
        """A copy on `device`. This one stays where it is: loader processes, which can use no GPU, may share it."""
        return type(self)(self.images.to(device), self.labels.to(device), self.flip)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The DataLoader's batched fetch: {"image": (B, 3, H, W) in [-1, 1], "label": (B,)}."""
        mirrored = draw_rows(torch.rand, len(indices)) < 0.5 if self.flip else None  # (B,) on the CPU
        if self.images.device.type != "cpu":
            return self.gather(torch.as_tensor(indices), mirrored)
        # numpy, not torch: one thread is enough, and torch's threads wait for one another where cores are shared
        images = self.images.numpy()[indices]  # (B, 3, H, W), a copy
        if mirrored is not None:
            chosen = mirrored.numpy()
            images[chosen] = images[chosen, ..., ::-1]
        pixels = images.astype(np.float32)
        pixels /= 127.5
        pixels -= 1
        return {"image": torch.from_numpy(pixels), "label": self.labels[torch.as_tensor(indices)]}

    def gather(self, indices: Tensor, mirrored: Tensor | None) -> Batch:
        """The batch of `indices` (B,) on the device of the images; the host waits for nothing."""
        rows = sent(indices, self.images.device)
        images = self.images.index_select(0, rows)  # (B, 3, H, W)
        if mirrored is not None:
            images = torch.where(sent(mirrored, images.device)[:, None, None, None], images.flip(-1), images)
        return {"image": images.div(self.half_range).sub_(1), "label": self.labels.index_select(0, rows)}

    def __getitem__(self, index: int) -> Batch:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`. The host does not wait: a copy out of pinned memory is the GPU's own work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
