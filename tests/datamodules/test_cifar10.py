"""CIFAR-10 in both forms, on tiny copies made here; on the real images where DATA_DIR names them."""

import os
import pickle
import re
import socket
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import datamodules.cifar10 as cifar10
from datamodules import CIFAR10Config, CIFAR10DataModule, find_cifar10
from datamodules.cache import cached

PER_CLASS = {"train": 3, "test": 2}


@pytest.fixture(autouse=True)
def no_user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """A data_dir with a tiny PNG export: random pixels, but red = 10 * class + number."""
    rng = np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for label, name in enumerate(cifar10.CLASSES):
            folder = tmp_path / "cifar10" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pixels[..., 0] = 10 * label + i
                Image.fromarray(pixels).save(folder / f"{i:04}.png")
    return tmp_path


def loaded(data_dir: Path, stage: str = "fit", **options) -> CIFAR10DataModule:
    data = CIFAR10DataModule(CIFAR10Config(batch_size=4, val_batch_size=4, **options), str(data_dir))
    data.prepare_data()
    data.setup(stage)
    return data


def replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def test_export_is_read_with_cifar_labels(export: Path):
    assert find_cifar10(export) == "export"
    data = loaded(export)
    assert re.fullmatch("cifar10-export-[0-9a-f]{8}", data.data_id)
    assert data.facts["num_images"] == {"train": 30, "val": 20}
    assert data.num_classes == 10
    train, val = data.train_set, data.val_set
    assert train.images.shape == (30, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert val.labels.bincount().tolist() == [2] * 10
    assert torch.equal(train.images[:, 0, 0, 0] // 10, train.labels.to(torch.uint8))


def test_export_pixels_are_those_of_the_files(export: Path):
    data = loaded(export)
    path = export / "cifar10" / "test" / "cat" / "0001.png"
    expected = torch.from_numpy(np.asarray(Image.open(path)).transpose(2, 0, 1).copy())
    assert any(torch.equal(image, expected) for image in data.val_set.images[data.val_set.labels == 3])


def test_subset_sizes_and_resizing(export: Path):
    data = loaded(export, train_size=20, val_size=10, image_size=48)
    assert data.train_set.images.shape == (20, 3, 48, 48)
    assert data.train_set.labels.bincount().tolist() == [2] * 10
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (4, 3, 48, 48)
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    # A plane of one value stays one under resizing.
    red = data.train_set.images[:, 0]
    assert torch.equal(red // 10, data.train_set.labels.to(torch.uint8)[:, None, None].expand_as(red))


def test_validation_alone_does_not_load_training_images(export: Path):
    assert loaded(export, stage="validate").train_set is None


def test_cache_is_reused(export: Path, monkeypatch: pytest.MonkeyPatch):
    before = loaded(export)
    names = ["test.files.npz", "test.npz", "train.files.npz", "train.npz"]
    assert sorted(p.name for p in (export / "cifar10-cache").iterdir()) == names
    monkeypatch.setattr(cifar10, "decode", lambda paths: pytest.fail("decoded again"))
    assert torch.equal(loaded(export).train_set.images, before.train_set.images)


@pytest.mark.parametrize("name", ["0001.png", "9999.png"])
def test_changed_or_grown_export_is_read_again(export: Path, name: str):
    loaded(export)
    white = np.full((32, 32, 3), 255, dtype=np.uint8)
    Image.fromarray(white).save(export / "cifar10" / "train" / "truck" / name)
    images = loaded(export).train_set.images
    assert len(images) == (31 if name == "9999.png" else 30)
    assert (images == 255).flatten(1).all(1).sum() == 1


@pytest.mark.parametrize("damage", ["truncated", "noise", "empty"])
def test_damaged_cache_is_made_again(export: Path, damage: str):
    before = loaded(export)
    cache = export / "cifar10-cache" / "train.npz"
    whole = cache.read_bytes()
    middle = len(whole) // 2
    spoilt = {"truncated": whole[:middle], "noise": whole[:middle] + b"?" * 64 + whole[middle + 64 :], "empty": b""}
    replace(cache, spoilt[damage])
    assert torch.equal(loaded(export).train_set.images, before.train_set.images)
    assert cache.stat().st_size == len(whole)


def test_cache_goes_to_the_user_where_the_data_cannot_be_written(export: Path, tmp_path: Path):
    (export / "cifar10-cache").write_text("a file where the folder would be")
    before = loaded(export)
    assert len(list((tmp_path / "user-cache").rglob("*.npz"))) == 4
    assert torch.equal(loaded(export).train_set.images, before.train_set.images)


def test_damaged_image_is_named(export: Path):
    replace(export / "cifar10" / "train" / "frog" / "0002.png", b"not an image")
    with pytest.raises(ValueError, match=r"frog.0002\.png: cannot be decoded.*copy it again"):
        loaded(export)
    assert not (export / "cifar10-cache" / "train.npz").exists(), "no images may be cached"


def test_truncated_image_is_named(export: Path):
    path = export / "cifar10" / "test" / "ship" / "0000.png"
    replace(path, path.read_bytes()[:-600])
    with pytest.raises(ValueError, match=r"ship.0000\.png: cannot be decoded"):
        loaded(export)


def test_image_of_another_size_is_named(export: Path):
    Image.new("RGB", (32, 40)).save(export / "cifar10" / "train" / "dog" / "0000.png")
    with pytest.raises(ValueError, match=r"dog.0000\.png: 32 x 40 pixels"):
        loaded(export)


def test_empty_class_folder_is_named(export: Path):
    for path in (export / "cifar10" / "test" / "bird").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test.bird: holds no image"):
        loaded(export)


def test_missing_and_foreign_classes_are_named(export: Path):
    (export / "cifar10" / "train" / "horse").rename(export / "cifar10" / "train" / "unicorn")
    with pytest.raises(ValueError, match=r"missing: \['horse'\].*'unicorn'"):
        loaded(export)


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_args, **_kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    with pytest.raises(FileNotFoundError, match="no route to host") as caught:
        CIFAR10DataModule(CIFAR10Config(), str(tmp_path)).prepare_data()
    for words in ("cifar-10-batches-py", str(tmp_path / "cifar10"), "unpack", "data_dir", "data=shapes"):
        assert words in str(caught.value)


def test_download_gives_up_on_a_silent_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A server that accepts a connection and never answers must not hold a run up."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(cifar10, "DOWNLOAD_TIMEOUT", 0.2)
        monkeypatch.setattr(cifar10.CIFAR10, "url", f"http://127.0.0.1:{server.getsockname()[1]}/cifar.tar.gz")
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        start = time.monotonic()
        with pytest.raises(FileNotFoundError, match="timed out"):
            CIFAR10DataModule(CIFAR10Config(), str(tmp_path)).prepare_data()
    assert time.monotonic() - start < 5
    assert socket.getdefaulttimeout() is None, "the limit is lifted again"


def test_without_download_missing_data_is_an_error(tmp_path: Path):
    assert find_cifar10(tmp_path) is None
    with pytest.raises(FileNotFoundError, match=r"data\.download is off.*unpack"):
        CIFAR10DataModule(CIFAR10Config(download=False), str(tmp_path)).prepare_data()
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        CIFAR10DataModule(CIFAR10Config(download=False), str(tmp_path)).setup("fit")


def write_binary(data_dir: Path) -> None:
    """torchvision's layout with ten images a file; image i of a file is filled with i, label i."""
    folder = data_dir / cifar10.CIFAR10.base_folder
    folder.mkdir()
    pixels = np.repeat(np.arange(10, dtype=np.uint8)[:, None], 3 * 32 * 32, axis=1)
    for name, _ in [*cifar10.CIFAR10.train_list, *cifar10.CIFAR10.test_list]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": cifar10.CLASSES}))


def test_binary_release_is_preferred_and_read(export: Path, monkeypatch: pytest.MonkeyPatch):
    write_binary(export)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    assert find_cifar10(export) == "binary"
    data = loaded(export)
    assert data.data_id == "cifar10-binary"
    assert data.train_set.images.shape == (50, 3, 32, 32)
    assert torch.equal(data.val_set.images[:, 0, 0, 0], data.val_set.labels.to(torch.uint8))


def test_damaged_binary_release_is_named(tmp_path: Path):
    write_binary(tmp_path)  # real checksums: torchvision refuses it
    with pytest.raises(ValueError, match=r"cifar-10-batches-py: damaged.*unpack"):
        loaded(tmp_path)


REAL = os.environ.get("DATA_DIR", "")  # empty, as `make test` sets it, where there is no such folder


@pytest.mark.skipif(not REAL or find_cifar10(REAL) is None, reason="DATA_DIR does not name a folder with CIFAR-10")
def test_real_cifar10():
    data = loaded(Path(REAL))
    assert data.train_set.labels.bincount().tolist() == [5000] * 10
    assert data.val_set.labels.bincount().tolist() == [1000] * 10
    mean = data.train_set.images.float().mean((0, 2, 3)) / 255
    std = data.train_set.images[::10].float().div(255).transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=0.002, rtol=0)  # widely quoted
    torch.testing.assert_close(std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=0.004, rtol=0)


def test_runs_that_start_at_once_decode_once(tmp_path: Path) -> None:
    built = []

    def build() -> dict[str, np.ndarray]:
        time.sleep(0.2)
        built.append(1)
        return {"images": np.arange(1000)}

    def start(_: int) -> int:
        return int(cached(tmp_path, "train.npz", "key", build)["images"].sum())

    with ThreadPoolExecutor(4) as pool:  # a file lock is each call's own: threads stand for processes
        assert list(pool.map(start, range(4))) == [499_500] * 4
    assert len(built) == 1
    assert cached(tmp_path, "train.npz", "other", build) and len(built) == 2, "images that have changed"
