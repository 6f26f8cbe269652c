"""Images from folders, on small gradients whose place in the picture can be read off."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import ImageFolderConfig, ImageFolderDataModule


def ramp(width: int, height: int) -> Image.Image:
    """Red grows by 1 a column, green by 1 a row, blue is 7."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], -1).astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("apple", "pear"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(4):
                ramp(40, 16).save(tmp_path / split / name / f"{i}.png")
    return tmp_path


def loaded(data_dir: Path, **options) -> ImageFolderDataModule:
    data = ImageFolderDataModule(ImageFolderConfig(**{"batch_size": 4, "image_size": 16, **options}), str(data_dir))
    data.prepare_data()
    data.setup("fit")
    return data


def pixels(images: torch.Tensor) -> torch.Tensor:
    return ((images + 1) * 127.5).round().int()


def test_batches(folder: Path):
    data = loaded(folder)
    assert data.num_classes == 2
    assert data.classes == ["apple", "pear"]
    assert re.fullmatch("image_folder-[0-9a-f]{8}", data.data_id)
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, 3, 16, 16)
    assert batch["image"].dtype == torch.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    assert sorted(torch.cat([b["label"] for b in data.val_dataloader()]).tolist()) == [0] * 4 + [1] * 4


def test_validation_crops_the_centre(folder: Path):
    image = pixels(loaded(folder).val_set[0]["image"])
    assert torch.equal(image[0, 0], torch.arange(12, 28, dtype=torch.int32))  # (40 - 16) / 2 = 12
    assert torch.equal(image[1, :, 0], torch.arange(16, dtype=torch.int32))


def test_training_crops_at_random_and_follows_torchs_seed(folder: Path):
    data = loaded(folder)
    torch.manual_seed(0)
    lefts = [pixels(data.train_set[0]["image"])[0, 0, 0].item() for _ in range(30)]
    torch.manual_seed(0)
    assert lefts == [pixels(data.train_set[0]["image"])[0, 0, 0].item() for _ in range(30)]
    assert len(set(lefts)) > 5
    assert min(lefts) >= 0
    assert max(lefts) <= 24


def test_training_can_crop_the_centre(folder: Path):
    image = pixels(loaded(folder, random_crop=False).train_set[0]["image"])
    assert image[0, 0, 0] == 12


def test_flip_is_for_training(folder: Path):
    data = loaded(folder, flip=True, random_crop=False)
    lefts = {pixels(data.train_set[0]["image"])[0, 0, 0].item() for _ in range(40)}
    assert lefts == {12, 27}
    assert {pixels(data.val_set[0]["image"])[0, 0, 0].item() for _ in range(40)} == {12}


@pytest.mark.parametrize("size", [(20, 50), (50, 20), (20, 20), (8, 12)])
def test_shorter_side_is_resized(folder: Path, size: tuple[int, int]):
    ramp(*size).save(folder / "val" / "apple" / "0.png")
    for batch in loaded(folder, image_size=10).val_dataloader():
        assert batch["image"].shape[1:] == (3, 10, 10)


def test_squash_keeps_the_whole_picture(folder: Path):
    with pytest.warns(UserWarning, match=r"data\.random_crop has no effect"):
        data = loaded(folder, resize="squash")
    image = pixels(data.val_set[0]["image"])
    assert image[0, 8, 0] <= 2  # the leftmost columns are there ...
    assert image[0, 8, -1] >= 37  # ... and the rightmost of 0..39


def test_images_made_otherwise_have_another_key(folder: Path):
    """Features of real images are kept by it: of another split, way to a square or labels they are others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        changed = [loaded(folder, **option) for option in ({"resize": "squash"}, {"class_folders": False})]
    data, same = loaded(folder), loaded(folder, random_crop=False, flip=True, batch_size=2)
    keys = [module.images_key("val") for module in (data, *changed)] + [data.images_key("train")]
    assert len(set(keys)) == 4 and same.images_key("val") == keys[0]
    assert [module.kind for module in changed] == ["image_folder-squash", "image_folder-flat"]


def test_unknown_resize_is_an_error(folder: Path):
    with pytest.raises(ValueError, match=r"data\.resize=stretch.*shorter"):
        loaded(folder, resize="stretch")


def test_grey_and_transparent_images_become_rgb(folder: Path):
    Image.new("L", (20, 20), 255).save(folder / "val" / "apple" / "0.png")
    Image.new("RGBA", (20, 20), (255, 255, 255, 0)).save(folder / "val" / "apple" / "1.png")
    Image.new("P", (20, 20)).save(folder / "val" / "apple" / "2.png")
    assert sum(len(batch["image"]) for batch in loaded(folder).val_dataloader()) == 8


def test_flat_folder_is_one_class(tmp_path: Path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i in range(4):
            ramp(16, 16).save(tmp_path / split / f"{i}.JPG", format="jpeg")
    data = loaded(tmp_path)
    assert data.num_classes == 1
    assert next(iter(data.train_dataloader()))["label"].tolist() == [0] * 4


def test_subfolders_need_not_be_classes(folder: Path):
    (folder / "val" / "apple").rename(folder / "val" / "part-1")
    data = loaded(folder, class_folders=False)
    assert data.num_classes == 1
    assert len(data.val_set) == 8  # type: ignore[arg-type]


def test_subset_has_equal_classes(folder: Path):
    assert loaded(folder, train_size=4).train_set.labels.bincount().tolist() == [2, 2]


def test_missing_folder_is_named(folder: Path):
    with pytest.raises(FileNotFoundError, match=r"validation: no such folder.*data_dir"):
        loaded(folder, val_folder="validation")
    with pytest.raises(FileNotFoundError, match="training: no such folder"):
        loaded(folder, train_folder="training")


def test_empty_class_folder_is_named(folder: Path):
    (folder / "train" / "quince").mkdir()
    (folder / "val" / "quince").mkdir()
    with pytest.raises(ValueError, match=r"train.quince: holds no image"):
        loaded(folder)


def test_different_classes_are_an_error(folder: Path):
    (folder / "val" / "pear").rename(folder / "val" / "plum")
    with pytest.raises(ValueError, match=r"\['pear', 'plum'\].*class_folders=false"):
        loaded(folder)


def test_damaged_image_is_named(folder: Path):
    (folder / "val" / "pear" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = loaded(folder)
    with pytest.raises(ValueError, match=r"pear.2\.png: cannot be decoded.*delete it"):
        list(data.val_dataloader())


def test_hidden_files_and_folders_are_no_images(folder: Path):
    (folder / "train" / ".thumbnails").mkdir()
    (folder / "train" / "pear" / "._0.png").write_bytes(b"resource fork")
    assert len(loaded(folder).train_set) == 8  # type: ignore[arg-type]
