"""The rendered data set."""

import numpy as np
import pytest
import torch

from datamodules import ShapesConfig, ShapesDataModule
from datamodules.shapes import SHAPES, image_keys, render, uniform

ALL = np.arange(600)


def test_an_image_depends_on_its_index_alone():
    images = render(ALL, "train", 16)
    for index in (0, 7, 599):
        assert torch.equal(render(np.array([index]), "train", 16)[0], images[index])
    assert torch.equal(render(ALL[::-1].copy(), "train", 16), images.flip(0))


def test_splits_seeds_and_indices_give_other_images():
    base = render(ALL[:50], "train", 16)
    assert len(base.flatten(1).unique(dim=0)) == 50
    for other in (render(ALL[:50], "val", 16), render(ALL[:50], "train", 16, seed=1), render(ALL[50:100], "train", 16)):
        assert ((base != other).flatten(1).any(1)).all()


def test_ten_classes_of_equal_size():
    data = ShapesDataModule(ShapesConfig(train_size=50, val_size=20))
    data.setup()
    assert data.num_classes == len(SHAPES) == 10
    assert data.data_id == "shapes"
    assert data.train_set.labels.bincount().tolist() == [5] * 10
    assert data.val_set.labels.bincount().tolist() == [2] * 10


def test_batches_have_the_range_of_images():
    data = ShapesDataModule(ShapesConfig(train_size=64, val_size=20, image_size=24, batch_size=64))
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 3, 24, 24)
    assert -1 <= batch["image"].min() < -0.9
    assert 0.9 < batch["image"].max() <= 1


def test_a_larger_set_begins_with_the_smaller():
    small, large = (ShapesDataModule(ShapesConfig(train_size=n, val_size=1)).load("train") for n in (20, 35))
    assert torch.equal(small.images, large.images[:20])


def test_the_scene_does_not_depend_on_the_resolution():
    small = render(ALL[:20], "train", 16).float()
    large = torch.nn.functional.avg_pool2d(render(ALL[:20], "train", 64).float(), 4)
    assert (small - large).abs().mean() < 8  # of 255: noise and antialiasing
    assert (small - large.roll(1, 0)).abs().mean() > 40


@pytest.mark.parametrize("name", SHAPES)
def test_distances_have_unit_slope_at_the_edge(name: str):
    """Antialiasing takes the distance for pixels: it must be negative inside and grow by 1 a unit across the edge."""
    axis = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    distance = SHAPES[name](x, y)
    slope_y, slope_x = torch.gradient(distance, spacing=axis[1].item() - axis[0].item())
    slope = torch.hypot(slope_x, slope_y)[distance.abs() < 0.03]
    assert 0.9 < slope.median() < 1.1
    assert 0.03 < (distance < 0).double().mean() < 0.4
    assert (distance[[0, -1]] > 0).all()
    assert (distance[:, [0, -1]] > 0).all()


def test_classes_can_be_told_apart():
    """Outlines on a common grid: no two shapes cover the same points."""
    axis = torch.linspace(-1.3, 1.3, 61)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = torch.stack([shape(x, y) < 0 for shape in SHAPES.values()]).float().flatten(1)  # (10, 61^2)
    common = inside @ inside.T
    area = inside.sum(1)
    overlap = common / (area[:, None] + area - common)
    assert overlap.fill_diagonal_(0).max() < 0.9


def test_random_numbers_are_uniform_and_unrelated():
    u = uniform(image_keys(np.arange(4000), "train", 0), 40)
    assert u.min() >= 0
    assert u.max() < 1
    assert (u.mean(0) - 0.5).abs().max() < 0.02
    correlation = torch.corrcoef(u.T).fill_diagonal_(0).abs().max()  # 0.016 is one standard error
    assert correlation < 0.08
    neighbours = torch.corrcoef(torch.stack([u[:-1].flatten(), u[1:].flatten()]))[0, 1]
    assert abs(neighbours) < 0.02


def test_random_numbers_may_be_entered_anywhere():
    key = image_keys(np.arange(3), "val", 5)
    assert torch.equal(uniform(key, 10)[:, 4:], uniform(key, 6, start=4))


def test_rendering_leaves_torch_as_it_was():
    torch.manual_seed(0)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    render(ALL[:10], "train", 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("size", [None, 0])
@pytest.mark.parametrize("key", ["train_size", "val_size"])
def test_size_must_be_given(key: str, size: int | None):
    with pytest.raises(ValueError, match=rf"data\.{key}={size}"):
        ShapesDataModule(ShapesConfig(**{key: size}))  # type: ignore[arg-type]
