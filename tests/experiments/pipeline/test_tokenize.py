"""The tokens that the command writes are the tokenizer's own; mistakes are one line."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from token_cases import SIZES, all_of, arguments, folder_of, run, save, served
from torch import Tensor

from datamodules import find_cifar10
from datamodules.token_files import SPLITS, read_meta
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, restore
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.tokens import plain_experiment
from lightning_modules.frozen import freeze

# ---- the tokens


def test_tokens_decode_to_the_reconstruction(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = tiny()
    checkpoint = save(experiment, tmp_path / "final.ckpt")
    run(monkeypatch, *arguments(experiment, checkpoint))
    folder = folder_of(experiment)
    assert sorted(path.name for path in folder.iterdir()) == [
        "meta.json",
        "train.bin",
        "train_labels.npy",
        "val.bin",
        "val_labels.npy",
    ]
    data = served(folder)
    assert (data.codebook_size, data.grid_size, data.tokenizer_digest) == (32, (8, 8), tokenizer_digest(checkpoint))
    assert (data.num_classes, data.data_id, folder.name.rsplit("-", 1)[0]) == (10, "shapes", data.tokenizer_digest)

    images = build_data(tiny("vqgan", *SIZES))
    _, module = restore(checkpoint)
    freeze(module)
    for split in SPLITS:
        loader = "ordered_train_dataloader" if split == "train" else "val_dataloader"
        tokens, pictures = all_of(getattr(data, loader)()), all_of(getattr(images, loader)())
        assert tokens["tokens"].shape == ({"train": 20, "val": 10}[split], 64)
        assert len(tokens["tokens"].unique()) > 16, "or the test would show little"
        assert torch.equal(tokens["label"], pictures["label"])
        decoded = module.decode_indices(tokens["tokens"].view(-1, 8, 8))
        torch.testing.assert_close(decoded, module(pictures["image"]).reconstruction)


def test_ids_beyond_65535_survive(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny("vqgan", "model.codebook_size=65636")
    checkpoint = save(experiment, tmp_path / "final.ckpt", first_used=65_536)
    run(monkeypatch, *arguments(experiment, checkpoint))
    tokens = all_of(served(folder_of(experiment)).val_dataloader())["tokens"]
    assert tokens.min() >= 65_536 and len(tokens.unique()) > 16
    _, module = restore(checkpoint)
    images = all_of(build_data(tiny("vqgan", *SIZES)).val_dataloader())["image"]
    assert torch.equal(tokens, freeze(module)(images).indices.flatten(1))


def test_all_images_are_encoded_unless_the_user_says_otherwise(tiny: TinyExperiment) -> None:
    """The tokenizer's own subset and augmentation are of no concern."""
    experiment = tiny("vqgan", "data.flip=true")
    whole = plain_experiment(experiment, "auto", {}).data
    assert (whole.train_size, whole.val_size, whole.flip) == (10_000, 2_000, False), "shapes: as many as it has"
    cifar = plain_experiment(experiment, "cifar10", {"val_size": 5}).data
    assert (cifar.name, cifar.train_size, cifar.val_size, cifar.image_size) == ("cifar10", None, 5, 16)


def test_the_mirrored_view(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny()
    checkpoint = save(experiment, tmp_path / "final.ckpt")
    run(monkeypatch, *arguments(experiment, checkpoint, "--flip"))
    data = served(folder_of(experiment))
    assert data.meta.views == {"train": ["plain", "mirrored"], "val": ["plain"]}
    rows = all_of(data.ordered_train_dataloader())["tokens"].view(20, 2, 64)
    images = all_of(build_data(tiny("vqgan", *SIZES)).ordered_train_dataloader())["image"]
    module = freeze(restore(checkpoint)[1])
    for view, pictures in enumerate([images, images.flip(-1)]):
        assert torch.equal(rows[:, view], module(pictures).indices.flatten(1))


def image_folder(tiny: TinyExperiment, root: Path) -> Experiment:
    generator = np.random.default_rng(0)
    for split in SPLITS:
        for name in ("a", "b"):
            (root / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = generator.integers(256, size=(16, 40, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    options = ["data.name=image_folder", "data.train_size=null", "data.val_size=null", "data.random_crop=true"]
    return tiny("vqgan", *options, f"runtime.data_dir={root}")


def test_crops_are_drawn_by_seed_image_and_view(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = image_folder(tiny, tmp_path / "images")
    checkpoint = save(experiment, tmp_path / "final.ckpt")
    tokens: dict[str, Tensor] = {}
    variants = {"a": ["--batch-size=4"], "b": ["--batch-size=5"], "c": ["data.data_seed=1"], "d": ["--flip"]}
    for name, more in variants.items():
        sizes = ["data.train_size=null", "data.val_size=null", "--views", "4", "--out", str(tmp_path / name)]
        torch.manual_seed(ord(name))
        run(monkeypatch, *arguments(experiment, checkpoint, *sizes, *more))
        assert read_meta(tmp_path / name).num_images == {"train": 12, "val": 12}
        tokens[name] = all_of(served(tmp_path / name).ordered_train_dataloader())["tokens"].view(12, 4, 64)
    plain, *crops = tokens["a"].unbind(1)
    assert torch.equal(tokens["b"], tokens["a"]), "not by the batches"
    assert not torch.equal(tokens["c"][:, 1:], tokens["a"][:, 1:])
    assert len({tuple(view[0].tolist()) for view in (plain, *crops)}) == 4
    assert not torch.equal(tokens["d"][:, 2:], tokens["a"][:, 2:]), "some crops are mirrored, as in training"

    validation = replace(experiment.data, train_folder="val", random_crop=False)  # type: ignore[call-arg]
    images = all_of(build_data(replace(experiment, data=validation)).val_dataloader())["image"]
    assert torch.equal(
        all_of(served(tmp_path / "a").val_dataloader())["tokens"],
        freeze(restore(checkpoint)[1])(images).indices.flatten(1),
    ), "validation images are plain"


# ---- mistakes, each one line


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--views", "0"], "--views 0: must be at least 1"),
        (["--views", "1", "--flip"], "--views 1: must be at least 2 with --flip"),
        (["--views", "3", "--flip"], "not of shapes: there are 2 views of its images"),
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["model.codebook_size=64"], "model: the tokenizer is trained, only data"),
        (["data.train_sise=4"], "did you mean 'data.train_size'"),
        (["--data", "imagenet"], "DATA=imagenet is none of"),
    ],
)
def test_mistakes(
    tiny: TinyExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    experiment = tiny()
    checkpoint = save(experiment, tmp_path / "final.ckpt")
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments(experiment, checkpoint, *more))
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not (Path(experiment.runtime.output_dir) / "tokens").exists()


# ---- real images

REAL = os.environ.get("DATA_DIR", "")


@pytest.mark.skipif(not REAL or find_cifar10(REAL) is None, reason="DATA_DIR does not name a folder with CIFAR-10")
def test_real_cifar10(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny("vqgan", "data.name=cifar10", "data.image_size=32", f"runtime.data_dir={REAL}")
    checkpoint = save(experiment, tmp_path / "final.ckpt")
    run(monkeypatch, *arguments(experiment, checkpoint, "data.train_size=40", "data.val_size=30", "--flip"))
    data = served(folder_of(experiment))
    assert data.data_id.startswith("cifar10-") and data.grid_size == (16, 16)
    assert data.train_set.labels.bincount().tolist() == [4] * 10  # type: ignore[union-attr]
    tokens = all_of(data.val_dataloader())["tokens"]
    images = all_of(build_data(replace(experiment, data=replace(experiment.data, val_size=30))).val_dataloader())[
        "image"
    ]
    module = freeze(restore(checkpoint)[1])
    torch.testing.assert_close(module.decode_indices(tokens.view(-1, 16, 16)), module(images).reconstruction)
    assert len(tokens.unique()) > 16
