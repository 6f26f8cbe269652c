"""A run is identified by the contents of what it reads: images, its codebook's images or table, the model below."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from safetensors.torch import save_file

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.pipeline.build import restore
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.records import data_name, images_id
from lightning_modules.pretrained import load_checkpoint

SOURCE = "model.quantizer.source"
Make = Callable[..., Experiment]


def picture(seed: int, size: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "a/images"
    for number, part in enumerate(("train/cat", "train/dog", "val/cat", "val/dog")):
        (folder / part).mkdir(parents=True)
        for i in range(3):
            picture(10 * number + i).save(folder / part / f"{i}.png")
    return folder


@pytest.fixture
def on_images(tiny: TinyExperiment) -> Make:
    sizes = ["data.name=image_folder", "data.train_size=null", "data.val_size=null", "data.random_crop=false"]

    def make(folder: Path, *overrides: str, model: str = "vqgan") -> Experiment:
        return tiny(model, *sizes, f"runtime.data_dir={folder}", *overrides)

    return make


# ---- ids


def test_a_codebook_of_other_images(on_images: Make, images: Path) -> None:
    own = inputs_of(on_images(images, model="vqgan_lc")).data_id
    same = inputs_of(on_images(images, f"{SOURCE}.data=image_folder", model="vqgan_lc")).data_id
    other = inputs_of(on_images(images, f"{SOURCE}.data=shapes", model="vqgan_lc")).data_id
    assert own == same and other != own and images_id(other) == own
    assert {data_name(own), data_name(other)} == {"image_folder"}


def test_a_ready_codebook_counts_by_its_values(tiny: TinyExperiment, tmp_path: Path) -> None:
    def ready(name: str, table: torch.Tensor) -> str:
        save_file({"codebook": table}, tmp_path / name)
        return inputs_of(tiny("vqgan_lc", f"{SOURCE}.path={tmp_path / name}")).data_id

    table = torch.randn(32, 40)
    first = ready("a.safetensors", table)
    assert ready("b.safetensors", table) == first != "shapes" and images_id(first) == "shapes"
    assert ready("b.safetensors", table + 1) != first
    assert inputs_of(tiny("vqgan_lc")).data_id == "shapes"


@pytest.mark.parametrize(
    ("split", "key", "message"),
    [
        ("val", "model.metrics.precision_recall=false", "val: 1 validation image.s., the metrics take 2"),
        ("val", "model.metrics.precision_recall=true", "val: 1 validation image.s., the metrics take 4"),
        ("train", "data.batch_size=5", "train: 1 training images do not fill one batch"),
    ],
)
def test_too_few_images_are_named_with_their_folder_before_any_work(
    on_images: Make, images: Path, tmp_path: Path, split: str, key: str, message: str
) -> None:
    for path in list((images / split).rglob("*.png"))[1:]:
        path.unlink()
    for folder in (images / split).iterdir():
        if not any(folder.iterdir()) and split == "train":
            shutil.rmtree(folder)
            shutil.rmtree(images / "val" / folder.name)
    with pytest.raises(ValueError, match=f"{images}/{message}"):
        train(on_images(images, key), "x", tmp_path / "run")


def test_the_images_below_count(tiny: TinyExperiment, on_images: Make, images: Path) -> None:
    def vim(below: Experiment) -> Experiment:
        upstream = {"recipe": "vqgan_cifar10.yaml", **below.identity()}
        values = {"model": {"name": "vim"}, "data": {"image_size": 16}, "upstream": upstream}
        return parse(values | {"runtime": {"data_dir": str(images)}}, "test")

    assert inputs_of(vim(tiny())).data_id == "shapes"
    found = inputs_of(vim(on_images(images))).data_id
    assert images_id(found) == "shapes" != found
    picture(99).save(images / "val/dog/2.png")
    assert inputs_of(vim(on_images(images))).data_id != found


def test_one_look_for_many_runs(on_images: Make, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    first = inputs_of(on_images(images), seen)
    monkeypatch.setattr("experiments.pipeline.inputs.data_module", lambda _: pytest.fail("looked again"))
    assert inputs_of(on_images(images, "seed=3"), seen) == first


# ---- runs


def test_a_moved_folder_is_the_same_run_and_an_exchanged_image_another(on_images: Make, images: Path) -> None:
    first_run, record = run_dir(on_images(images), "x"), train(on_images(images), "x", run_dir(on_images(images), "x"))
    moved = images.parents[1] / "elsewhere"
    images.rename(moved)
    again = on_images(moved, "trainer.log_every=3", "data.val_batch_size=2")
    assert run_dir(again, "x") == first_run and train(again, "x", first_run) == record
    checkpoint = load_checkpoint(first_run / "checkpoints/final.ckpt")
    assert record["images"] == checkpoint["images"] and record["data_id"] == checkpoint["data_id"]
    assert record["images"]["name"] == "images" and record["images"]["num_images"] == {"train": 6, "val": 6}
    assert set(record["images"]["fingerprint"]) == {"train", "val"}
    assert record["images"]["classes"] == restore(first_run / "checkpoints/final.ckpt")[1].class_names == ["cat", "dog"]

    picture(99).save(moved / "train/cat/0.png")
    other = train(again, "x", run_dir(again, "x"))
    assert run_dir(again, "x") != first_run and other["data_id"] != record["data_id"]
    assert other["metrics"] != record["metrics"]
    out = Path(again.runtime.output_dir)
    assert [len([*out.glob(kept)]) for kept in ("records/*.json", "references/*.pt")] == [2, 2]


def test_two_folders_of_one_name_share_nothing(on_images: Make, images: Path, tmp_path: Path) -> None:
    """The codebook of the first is not used for the second."""
    other = tmp_path / "b/images"
    shutil.copytree(images, other)
    for number, path in enumerate(sorted(other.rglob("*.png"))):
        picture(100 + number).save(path)
    runs = [on_images(folder, f"{SOURCE}.num_images=0", model="vqgan_lc") for folder in (images, other)]
    records = [train(run, "x", run_dir(run, "x")) for run in runs]
    assert records[0]["metrics"] != records[1]["metrics"]
    out = Path(runs[0].runtime.output_dir)
    assert len([*(out / "codebooks").glob("*.safetensors")]) == 2


def test_a_run_is_not_continued_on_other_images(on_images: Make, images: Path, tmp_path: Path) -> None:
    experiment, folder = on_images(images), tmp_path / "run"
    before = train(experiment, "x", folder)["data_id"]
    picture(99).save(images / "val/cat/0.png")
    after = inputs_of(experiment).data_id
    with pytest.raises(ValueError, match=rf"final\.ckpt: of another experiment \(images {before}, here {after}\)"):
        train(experiment, "x", folder)


@pytest.mark.parametrize("key", ["trainer.log_every=5", "trainer.checkpoint_every=500", "data.val_batch_size=2"])
def test_a_run_goes_on_with_other_keys_that_change_no_number(tiny: TinyExperiment, tmp_path: Path, key: str) -> None:
    record = train(tiny(), "x", tmp_path / "run")
    for path in Path(tiny().runtime.output_dir).glob("records/*"):
        path.unlink()
    assert train(tiny("vqgan", key), "x", tmp_path / "run")["metrics"] == pytest.approx(record["metrics"])
