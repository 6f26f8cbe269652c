"""Images in memory: the batches of every device, and who makes them."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import Subset

from datamodules import DataConfig, ImageDataModule
from datamodules import placing as placing_module
from datamodules.arrays import ArrayDataset
from datamodules.image_folder import FileDataset
from datamodules.placing import fits_device, loader_processes, on_device, placing_text

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def numbered(flip: bool = True) -> ArrayDataset:
    torch.manual_seed(0)
    return ArrayDataset(torch.randint(256, (40, 3, 4, 6), dtype=torch.uint8), torch.arange(40), flip)


@pytest.mark.parametrize("flip", [False, True])
def test_a_gpu_makes_the_same_batches(flip: bool) -> None:
    """What runs on a GPU, here on the CPU: the same numbers, bit for bit."""
    dataset, indices = numbered(flip), [3, 39, 0, 7, 7, 12]
    torch.manual_seed(1)
    expected = dataset.__getitems__(indices)
    torch.manual_seed(1)
    mirrored = torch.rand(len(indices)) < 0.5 if flip else None
    batch = dataset.gather(torch.tensor(indices), mirrored)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[key], expected[key]) and batch[key].dtype == expected[key].dtype for key in batch)


def test_all_values_of_a_pixel_are_the_same_numbers_everywhere() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    dataset = ArrayDataset(images, torch.zeros(1, dtype=torch.int64))
    assert torch.equal(dataset.gather(torch.tensor([0]), None)["image"], dataset.__getitems__([0])["image"])


def test_a_copy_leaves_the_first_where_it_is() -> None:
    dataset = numbered()
    subset = Subset(Subset(dataset, [5, 6, 7]), [2, 0])
    moved = on_device(subset, torch.device("meta"))
    assert moved.dataset.dataset.images.is_meta and moved.dataset.dataset.flip and not dataset.images.is_meta
    assert torch.equal(on_device(subset, CPU).__getitems__([0, 1])["label"], torch.tensor([7, 5]))


def test_processes_load_files_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    files: Any = FileDataset([], torch.empty(0), lambda image: torch.empty(0))
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert loader_processes(-1, files, GPU) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: 200)
    assert loader_processes(-1, Subset(files, []), GPU) == 8
    assert loader_processes(-1, files, CPU) == loader_processes(-1, numbered(), GPU) == 0
    assert loader_processes(3, files, CPU) == 3 and loader_processes(0, files, GPU) == 0
    assert placing_text(-1, files, GPU) == "read by 8 processes"
    assert placing_text(-1, numbered(), GPU) == "in the memory of the GPU"
    assert placing_text(-1, numbered(), CPU) == "read by the training process"


def test_images_that_would_fill_a_gpu_stay_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Subset(numbered(), [0])
    assert fits_device(dataset, GPU) and not fits_device(dataset, CPU)
    monkeypatch.setattr(placing_module, "MAX_DEVICE_BYTES", numbered().images.nbytes - 1)
    assert not fits_device(dataset, GPU)


class Plain(ImageDataModule):
    num_classes, data_id = 40, "plain"

    def load(self, split: str) -> ArrayDataset:
        return numbered(flip=split == "train")


@pytest.mark.parametrize(("num_workers", "is_moved"), [(-1, True), (0, True), (1, False)])
def test_loaders_of_a_run_on_a_gpu(monkeypatch: pytest.MonkeyPatch, num_workers: int, is_moved: bool) -> None:
    """Their copies are on the trainer's device; the datamodule's own images are not."""
    moved: list[torch.device] = []
    monkeypatch.setattr(ArrayDataset, "to", lambda self, device: moved.append(device) or self)
    data = Plain(DataConfig(batch_size=8), "", num_workers=num_workers)
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=1, global_rank=0, strategy=SimpleNamespace(root_device=GPU))  # type: ignore[assignment]
    loader = data.train_dataloader()
    assert moved == [GPU] * is_moved and loader.pin_memory is not is_moved and loader.num_workers == max(0, num_workers)
