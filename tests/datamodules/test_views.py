"""Fixed views of images, on ramps whose crop can be read off."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderConfig, ImageFolderDataModule
from datamodules.views import ViewDataset

VIEWS = ["plain", "mirrored", "crop", "crop"]


@pytest.fixture
def data(tmp_path: Path) -> ImageFolderDataModule:
    """Twelve images of 16 x 40 pixels; red grows by 1 a column."""
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None], (16, 40, 3))
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i in range(12):
            Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / split / f"{i:02}.png")
    module = ImageFolderDataModule(ImageFolderConfig(image_size=16, batch_size=1, random_crop=False), str(tmp_path))
    module.setup("fit")
    return module


def in_views(data: ImageFolderDataModule, seed: int = 0) -> ViewDataset:
    cropping = ImageFolderDataModule(ImageFolderConfig(image_size=16), str(data.data_dir))
    assert data.train_set is not None
    return ViewDataset(data.train_set, VIEWS, cropping.transform(train=True), seed)


def offsets(data: ImageFolderDataModule, indices: list[int], seed: int = 0) -> torch.Tensor:
    """First column of each view (B, V), where the views of an image begin."""
    views = in_views(data, seed)
    assert len(views) == 12
    images = views.__getitems__(indices)["image"]
    assert images.shape == (len(indices), 4, 3, 16, 16)
    columns = ((images + 1) * 127.5).round().int()[:, :, 0, 0]  # (B, V, 16)
    step = torch.tensor([1, -1, 1, 1])[:, None]
    assert torch.equal(columns, columns[..., :1] + step * torch.arange(16)), "whole, and mirrored where they should be"
    return columns[..., 0]


def test_views_are_plain_mirrored_and_cropped(data: ImageFolderDataModule) -> None:
    first = offsets(data, list(range(12)))
    assert (first[:, 0] == 12).all() and (first[:, 1] == 27).all(), "the centre, from the left and from the right"
    for view in (2, 3):
        assert len(first[:, view].unique()) > 4, "each image has its own crops"
    assert (first[:, 2] != first[:, 3]).any(), "and each view"


def test_crops_depend_on_seed_image_and_view_alone(data: ImageFolderDataModule) -> None:
    torch.manual_seed(1)
    whole = offsets(data, list(range(12)))
    torch.manual_seed(2)
    expected = torch.rand(5)
    assert torch.equal(offsets(data, [7, 3]), whole[[7, 3]])
    torch.manual_seed(2)
    in_views(data).cropped(7, range(2, 4))
    assert torch.equal(torch.rand(5), expected), "the global generator is left alone"
    assert not torch.equal(offsets(data, list(range(12)), seed=1), whole)
