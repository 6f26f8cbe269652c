"""Images from folders, on small gradients whose place in the picture can be read off."""

import os
import re
import shutil
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


def test_maes_augmentation_is_for_training_and_follows_torchs_seed(folder: Path):
    data, plain = loaded(folder, augment="mae"), loaded(folder)
    torch.manual_seed(0)
    images = [data.train_set[0]["image"] for _ in range(8)]
    torch.manual_seed(0)
    assert all(torch.equal(image, data.train_set[0]["image"]) for image in images)
    widths = {int(image[0].amax() * 127.5 - image[0].amin() * 127.5) for image in images}
    assert len(widths) > 4 and images[0].shape == (3, 16, 16), "boxes and colours vary"
    assert torch.equal(data.val_set[0]["image"], plain.val_set[0]["image"]) and data.data_id == plain.data_id
    with pytest.raises(ValueError, match="augment='strong' is none of"):
        ImageFolderConfig(augment="strong").check()


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


def test_validation_images_of_other_classes_are_an_error(folder: Path):
    (folder / "val" / "pear").rename(folder / "val" / "plum")
    with pytest.raises(ValueError, match=r"val: class folders \['plum'\].*class_folders=false"):
        loaded(folder)
    for path in (folder / "val" / "plum").iterdir():
        path.unlink()
    assert loaded(folder).classes == ["apple", "pear"], "an empty folder is no class"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_class_without_validation_images(folder: Path, is_there: bool, capsys: pytest.CaptureFixture[str]):
    for path in (folder / "val" / "apple").iterdir():
        path.unlink()
    if not is_there:
        (folder / "val" / "apple").rmdir()
    data = loaded(folder)
    assert data.val_set.labels.tolist() == [1] * 4
    assert "no images of 1 of 2 classes (apple) to validate" in capsys.readouterr().err


def test_a_subset_larger_than_the_folder_is_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]):
    data = loaded(folder, train_size=5000, val_size=5000)
    assert len(data.train_set) == len(data.val_set) == 8  # type: ignore[arg-type]
    assert "data.train_size=5000: there are 8 images, all of them are used" in capsys.readouterr().err


def test_damaged_image_is_named(folder: Path):
    (folder / "val" / "pear" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    data = loaded(folder)
    with pytest.raises(ValueError, match=r"pear.2\.png: cannot be decoded.*delete it"):
        list(data.val_dataloader())


def test_hidden_files_and_caches_are_no_images_at_any_depth(folder: Path):
    for name in ("train/.thumbnails", "train/__MACOSX", "train/pear/.ipynb_checkpoints", "train/pear/a/b/@eaDir"):
        (folder / name).mkdir(parents=True)
        ramp(16, 16).save(folder / name / "0.png")
    (folder / "train" / "pear" / "._0.png").write_bytes(b"resource fork")
    data = loaded(folder)
    assert data.classes == ["apple", "pear"] and len(data.train_set) == 8  # type: ignore[arg-type]


# ---- links


def test_links_are_followed(folder: Path, tmp_path: Path):
    (store := tmp_path / "store/deep").mkdir(parents=True)
    ramp(16, 16).save(store / "9.png")
    (folder / "train/apple/part2").symlink_to(store.parent, target_is_directory=True)
    (folder / "train/quince").symlink_to(store, target_is_directory=True)
    (folder / "train/pear/one.png").symlink_to(store / "9.png")
    data = loaded(folder)
    assert data.classes == ["apple", "pear", "quince"]
    assert data.train_set.labels.bincount().tolist() == [5, 5, 1]
    assert len(loaded(folder, class_folders=False).train_set) == 11  # type: ignore[arg-type]


def test_circles_of_links_end(folder: Path):
    for name, target in {"up": "..", "self": ".", "over": "../pear"}.items():
        (folder / "train/apple" / name).symlink_to(target, target_is_directory=True)
    (folder / "train/pear/back").symlink_to("../apple", target_is_directory=True)
    (folder / "train/pear/nowhere").symlink_to("nowhere")
    paths = [os.path.relpath(path, folder / "train") for path in loaded(folder).train_set.paths]
    assert len(set(paths)) == len(paths) and max(path.count("/") for path in paths) == 2
    assert {f"{name}/{i}.png" for name in ("apple", "pear") for i in range(4)} < set(paths)


# ---- classes


def test_numbered_classes_are_in_the_order_of_their_numbers(tmp_path: Path):
    for split in ("train", "val"):
        for number in range(12):
            (tmp_path / split / str(number)).mkdir(parents=True)
            ramp(16, 16).save(tmp_path / split / str(number) / "0.png")
    data = loaded(tmp_path)
    assert data.classes == data.facts["classes"] == [str(number) for number in range(12)]
    assert [Path(path).parent.name for path in data.files["train"].paths] == data.classes
    (tmp_path / "train/x").mkdir()
    ramp(16, 16).save(tmp_path / "train/x/0.png")
    assert loaded(tmp_path).classes[:4] == ["0", "1", "10", "11"]


# ---- images in one folder


def unsplit(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            ramp(16, 16).save(root / name / f"{i}.png")
    return root


def test_a_flat_folder_is_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = loaded(unsplit(tmp_path, {"": 30}))
    assert data.num_classes == 1 and [len(s) for s in (data.train_set, data.val_set)] == [27, 3]  # type: ignore[arg-type]
    assert not {*data.train_set.paths} & {*data.val_set.paths}
    assert "no folders train and val: of its images, in 1 class(es), 27 train and 3 val" in capsys.readouterr().err
    assert [len(loaded(tmp_path, val_share=share).val_set) for share in (0.01, 0.5)] == [2, 15]  # type: ignore[arg-type]


def test_class_folders_are_split_in_proportion(tmp_path: Path):
    data = loaded(unsplit(tmp_path, {"many": 60, "some": 20, "one": 1}))
    assert data.classes == ["many", "one", "some"]
    assert data.val_set.labels.bincount(minlength=3).tolist() == [6, 0, 2]
    assert data.train_set.labels.bincount(minlength=3).tolist() == [54, 1, 18]


def test_images_beside_class_folders_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    unsplit(tmp_path, {"": 7, "edited": 10})
    assert len(loaded(tmp_path).files["train"].paths) == 8
    assert "7 images beside the class folders are not read; data.class_folders=false" in capsys.readouterr().err
    data = loaded(tmp_path, class_folders=False)
    assert len(data.train_set) + len(data.val_set) == 17  # type: ignore[arg-type]
    assert "are not read" not in capsys.readouterr().err


def test_the_split_is_of_names_alone(tmp_path: Path):
    """Elsewhere it is the same, and another image changes little of it."""
    data = loaded(unsplit(tmp_path / "a", {"": 40}))
    names = {Path(path).name for path in data.val_set.paths}
    other = loaded(unsplit(tmp_path / "b", {"": 40}))
    assert {Path(path).name for path in other.val_set.paths} == names and other.data_id == data.data_id
    ramp(16, 16).save(tmp_path / "b/new.png")
    assert len(names - {Path(path).name for path in loaded(tmp_path / "b").val_set.paths}) <= 1
    assert loaded(tmp_path / "a", val_share=0.2).data_id != data.data_id


def test_folders_that_are_not_to_be_split(folder: Path, tmp_path: Path):
    (tmp_path / "sets").mkdir()
    shutil.copytree(folder / "train", tmp_path / "sets/fruit/train")
    with pytest.raises(ValueError, match=r"sets: holds data sets, such as fruit: .* data\.dataset=fruit"):
        loaded(tmp_path / "sets")
    with pytest.raises(FileNotFoundError, match=r"flat.val: no such folder"):
        loaded(unsplit(tmp_path / "flat", {"": 9}), train_folder="mine")
    with pytest.raises(ValueError, match=r"2 images are too few to split: .*`tokenize --images`"):
        loaded(unsplit(tmp_path / "two", {"": 2}))
    with pytest.raises(FileNotFoundError, match=r"nowhere.val: no such folder"):
        loaded(tmp_path / "nowhere")
