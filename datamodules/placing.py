"""Where batches are made: in the run's own process, in loader processes, or on the GPU that trains."""

import os
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from datamodules.arrays import ArrayDataset

MAX_DEVICE_BYTES = 2**31  # of images in a GPU's memory, which several runs may share
MAX_PROCESSES = 8


def source_of(dataset: Dataset[Any]) -> Dataset[Any]:
    """The dataset below all `Subset`s."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def loader_processes(wanted: int, dataset: Dataset[Any], device: torch.device) -> int:
    """How many processes load `dataset` for `device`: `runtime.num_workers`, where it is not -1.

    -1 chooses: for files that are decoded on the fly, while a GPU works, a process for each core that the machine has
    for each GPU, at most `MAX_PROCESSES`; else none. On a CPU they would take the cores from the training.
    """
    if wanted >= 0:
        return wanted
    if device.type != "cuda" or not getattr(source_of(dataset), "is_decoded", False):
        return 0
    return max(1, min(MAX_PROCESSES, (os.cpu_count() or 1) // max(1, torch.cuda.device_count())))


def fits_device(dataset: Dataset[Any], device: torch.device) -> bool:
    """Whether the images are in memory, and are to be kept in that of `device`, a GPU."""
    source = source_of(dataset)
    return device.type == "cuda" and isinstance(source, ArrayDataset) and source.images.nbytes <= MAX_DEVICE_BYTES


def on_device(dataset: Any, device: torch.device) -> Any:
    """A copy of an `ArrayDataset`, or of a `Subset` of one, whose batches are made on `device`."""
    if isinstance(dataset, Subset):
        return Subset(on_device(dataset.dataset, device), dataset.indices)
    return dataset.to(device)


def placing_text(wanted: int, dataset: Dataset[Any], device: torch.device) -> str:
    """For the start screen: "in memory of the GPU", "read by 8 processes" or "read by this process"."""
    if processes := loader_processes(wanted, dataset, device):
        return f"read by {processes} process{'es' * (processes > 1)}"
    return "in the memory of the GPU" if fits_device(dataset, device) else "read by the training process"
