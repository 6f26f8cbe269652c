"""Images are identified by their contents: no place, folder name or file time counts, and every pixel does."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import cache as cache_module
from datamodules import fingerprint as fingerprint_module
from datamodules.fingerprint import SETTLED, fingerprint
from datamodules.image_folder import ImageFolderConfig, ImageFolderDataModule


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def age(folder: Path) -> None:
    """As if all files had been written long ago."""
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(0, path.stat().st_mtime_ns - 2 * SETTLED))


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, path in enumerate(f"{split}/{name}" for split in ("train", "val") for name in ("cat", "dog")):
        (tmp_path / "set" / path).mkdir(parents=True)
        for i in range(3):
            picture(10 * number + i).save(tmp_path / "set" / path / f"{i}.png")
    return tmp_path / "set"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []
    read = fingerprint_module.digest_of_file

    def noted(path: str) -> bytes:
        found.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(fingerprint_module, "digest_of_file", noted)
    monkeypatch.setattr(fingerprint_module, "SETTLED", -(10**15))  # files of this moment count as old ones
    return found


def data(folder: Path, **options: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(ImageFolderConfig(**options), str(folder))  # type: ignore[arg-type]


def exchange(folder: Path) -> None:
    picture(99).save(folder / "val/dog/1.png")


def add(folder: Path) -> None:
    picture(99).save(folder / "train/cat/9.png")


def crop_again(folder: Path) -> None:
    picture(0).crop((1, 1, 15, 15)).save(folder / "train/cat/0.png")


def swap(folder: Path) -> None:
    """The same contents in another order."""
    paths = [folder / f"train/cat/{name}.png" for name in "0x1"]
    for source, target in ((0, 1), (2, 0), (1, 2)):
        paths[source].rename(paths[target])


def relabel(folder: Path) -> None:
    (folder / "train/cat/0.png").rename(folder / "train/dog/3.png")


def replace_quietly(folder: Path) -> None:
    """Another content of the same size, with the old one's time of modification."""
    path = folder / "train/cat/0.png"
    content, info = path.read_bytes(), path.stat()
    path.write_bytes(content[:-20] + b"?" + content[-19:])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [add, exchange, crop_again, swap, relabel, replace_quietly, lambda folder: (folder / "train/cat/0.png").unlink()],
)
def test_one_image_more_less_or_other_is_another_data_set(folder: Path, change: Callable[[Path], None]) -> None:
    before = data(folder)
    assert before.data_id == data(folder).data_id
    change(folder)
    after = data(folder)
    assert after.data_id != before.data_id and after.kind == before.kind
    assert after.images_key("val") != before.images_key("val")


def test_place_name_and_time_do_not_count(folder: Path, tmp_path: Path) -> None:
    before = data(folder)
    expected = before.data_id
    shutil.copytree(folder, tmp_path / "elsewhere/another name")
    (tmp_path / "elsewhere/another name/val").rename(tmp_path / "elsewhere/another name/test")
    age(folder)
    assert data(folder).data_id == expected
    assert data(tmp_path / "elsewhere", dataset="another name", val_folder="test").data_id == expected
    folder.rename(tmp_path / "moved")
    assert data(tmp_path / "moved").data_id == expected
    assert data(tmp_path / "moved").facts["num_images"] == {"train": 6, "val": 6}


def test_two_folders_of_one_name_are_two_data_sets(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other" / folder.name)
    exchange(tmp_path / "other" / folder.name)
    assert data(folder).data_id != data(tmp_path / "other" / folder.name).data_id


def test_unchanged_bytes_are_read_once(folder: Path, reads: list[str]) -> None:
    first = data(folder).data_id
    assert len(reads) == 12
    reads.clear()
    assert data(folder).data_id == first and reads == []
    add(folder)
    (folder / "val/dog/0.png").touch()
    assert data(folder).data_id != first and sorted(reads) == ["0.png", "9.png"]


def test_a_file_written_a_moment_before_is_read_again(folder: Path, reads: list[str], monkeypatch) -> None:
    """It may have changed after it was read, within the resolution of the file system's times."""
    monkeypatch.setattr(fingerprint_module, "SETTLED", 10**12)
    data(folder).fingerprints  # noqa: B018
    reads.clear()
    data(folder).fingerprints  # noqa: B018
    assert len(reads) == 12


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_a_damaged_or_foreign_file_of_fingerprints(folder: Path, reads: list[str], content: bytes) -> None:
    first = data(folder).data_id
    for path in (folder / ".fingerprints").iterdir():
        path.write_bytes(content)
    reads.clear()
    assert data(folder).data_id == first and len(reads) == 12


def test_a_folder_that_cannot_be_written(folder: Path, reads: list[str], user_cache: Path) -> None:
    (folder / ".fingerprints").write_text("a file where the folder would be")
    first = data(folder).data_id
    assert len(list(user_cache.rglob("*.npz"))) == 2
    reads.clear()
    assert data(folder).data_id == first and reads == []


def test_a_folder_that_cannot_be_written_any_more(
    folder: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was kept in it stays, and is older than that in the user's cache."""
    data(folder).fingerprints  # noqa: B018
    write = cache_module._write

    def refusing(path: Path, arrays: cache_module.Arrays) -> None:
        if path.is_relative_to(folder):
            raise PermissionError
        write(path, arrays)

    monkeypatch.setattr(cache_module, "_write", refusing)
    exchange(folder)
    changed = data(folder).data_id
    reads.clear()
    assert data(folder).data_id == changed and reads == []


def test_splits_whose_folders_have_the_same_name(folder: Path, reads: list[str]) -> None:
    for split in ("train", "val"):
        (folder / split).rename(folder / "images")
        (folder / split).mkdir()
        (folder / "images").rename(folder / split / "images")
    options = {"train_folder": "train/images", "val_folder": "val/images"}
    first = data(folder, **options).data_id
    reads.clear()
    assert data(folder, **options).data_id == first and reads == []


def test_a_link_to_a_file_that_is_not_there(folder: Path) -> None:
    (folder / "val/dog/1.png").unlink()
    (folder / "val/dog/1.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(FileNotFoundError, match=r"val/dog/1\.png: a link to a file that is not there; delete it"):
        data(folder).data_id  # noqa: B018


def test_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    paths = [os.path.join(tmp_path, os.fsdecode(name)) for name in (b"\xff.png", b"a.png")]
    for path in paths:
        Path(path).write_bytes(path.encode("utf-8", "surrogateescape"))
    found = fingerprint(paths, tmp_path, tmp_path / "kept", "x.npz")
    assert len(found) == 32 and found == fingerprint(paths, tmp_path, tmp_path / "kept", "x.npz")
