"""The frozen table of a large codebook: selection, clustering, cache, and files that do not fit."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.build_codebook import main
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data
from experiments.pipeline.codebooks import build as module
from experiments.pipeline.codebooks import extraction, kmeans
from experiments.pipeline.codebooks.build import build_codebook, codebook_for, codebook_path, read_codebook
from experiments.pipeline.codebooks.extraction import features_for
from experiments.pipeline.codebooks.features import Features
from experiments.pipeline.codebooks.kmeans import split

SOURCE = "model.quantizer.source"
PER_IMAGE = 16  # features: 4 x 4 at stage 3 of 32 pixels


def all_of(features: Features) -> Tensor:
    return features.rows(np.arange(len(features)))


def rows_of(table: Tensor, features: Features) -> Tensor:
    """For each code, the index of the feature it is equal to, or -1."""
    equal = (table[:, None] == all_of(features)).all(-1)  # (K, N)
    return torch.where(equal.any(1), equal.int().argmax(1), -1)


def distortion(features: Features, table: Tensor) -> float:
    return float(torch.cdist(all_of(features), table).amin(1).square().mean())


# ---- the table


@pytest.mark.parametrize("per_class", [True, False])
def test_random_selection_takes_distinct_features(tiny: TinyExperiment, per_class: bool) -> None:
    experiment = tiny("vqgan_lc", f"{SOURCE}.per_class={per_class}", "model.codebook_size=45")
    table = codebook_for(experiment, "shapes")
    features = features_for(experiment, "shapes")
    labels = features.labels()
    assert features.shape == (40 * PER_IMAGE, 40) and labels.shape == (40 * PER_IMAGE,)
    assert table.shape == (45, 40) and table.dtype == torch.float32
    rows = rows_of(table, features)
    assert (rows >= 0).all() and len(rows.unique()) == 45
    counts = np.bincount(labels[rows], minlength=10)
    if per_class:
        assert counts.tolist() == [5] * 5 + [4] * 5, "K split evenly over the ten classes"
        assert (np.diff(labels[rows]) >= 0).all(), "class by class"
    else:
        assert len(set(counts)) > 2, "chance does not split evenly"


@pytest.mark.parametrize("per_class", [True, False])
def test_kmeans_lowers_the_distortion(tiny: TinyExperiment, per_class: bool) -> None:
    tables = {}
    for method in ("random", "kmeans"):
        experiment = tiny("vqgan_lc", f"{SOURCE}.per_class={per_class}", f"{SOURCE}.method={method}")
        tables[method] = codebook_for(experiment, "shapes")
    features = features_for(experiment, "shapes")
    assert distortion(features, tables["kmeans"]) < 0.9 * distortion(features, tables["random"])
    assert tables["kmeans"].shape == (32, 40)


def test_random_numbers_in_place_of_features(tiny: TinyExperiment) -> None:
    """B-Table 6, random initialisation: nothing is extracted, and no file is made."""
    experiment = tiny("vqgan_lc", f"{SOURCE}.method=normal", "model.codebook_size=3000")
    table = codebook_for(experiment, "shapes")
    assert table.shape == (3000, 40) and abs(float(table.mean())) < 0.02 and abs(float(table.std()) - 1) < 0.02
    assert torch.equal(table, codebook_for(experiment, "shapes"))
    other = codebook_for(tiny("vqgan_lc", f"{SOURCE}.method=normal", f"{SOURCE}.seed=1"), "shapes")
    assert not torch.equal(other, table[:32])
    assert not (Path(experiment.runtime.output_dir) / "codebooks").exists()


def test_the_features_of_another_data_set(tiny: TinyExperiment, tmp_path: Path) -> None:
    """B-Table 9: a codebook of one set for training on another."""
    for split_name in ("train", "val"):
        for number in range(4):
            folder = tmp_path / "data" / split_name / "one"
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (60 * number, 200, 30)).save(folder / f"{number}.png")
    where = [
        "data.name=image_folder",
        "data.train_size=null",
        "data.val_size=null",
        f"runtime.data_dir={tmp_path}/data",
    ]
    own = tiny("vqgan_lc", *where, f"{SOURCE}.method=random", f"{SOURCE}.num_images=0")
    transferred = tiny(
        "vqgan_lc", *where, f"{SOURCE}.method=random", f"{SOURCE}.data=shapes", f"{SOURCE}.num_images=40"
    )
    tables = [codebook_for(experiment, "image_folder-data") for experiment in (own, transferred)]
    shapes = features_for(tiny("vqgan_lc", f"{SOURCE}.num_images=40"), "shapes")
    assert (rows_of(tables[1], shapes) >= 0).all() and (rows_of(tables[0], shapes) < 0).all()
    assert own.digest() != transferred.digest()


def test_an_unknown_data_set_is_named(tiny: TinyExperiment) -> None:
    with pytest.raises(ValueError, match=r"source.data='shape' is none of cifar10, image_folder, shapes"):
        codebook_for(tiny("vqgan_lc", f"{SOURCE}.data=shape"), "shapes")


@pytest.mark.parametrize(("size", "expected"), [(10, [10]), (25, [9, 8, 8]), (2, [2])])
def test_split(size: int, expected: list[int]) -> None:
    """Over the classes, unless there is one class only, or fewer codes than classes."""
    labels = np.repeat([0, 0, 0] if size == 10 else [3, 5, 8], 20)
    parts = split(labels, size, per_class=True)
    assert [n for _, n in parts] == expected
    assert sorted(np.concatenate([rows for rows, _ in parts])) == list(range(60))
    assert len(split(labels, size, per_class=False)) == 1


def test_features_are_those_of_the_plain_training_images(tiny: TinyExperiment) -> None:
    """No flips, in order, as many images as asked for, whatever data.train_size says."""
    experiment = tiny("vqgan_lc", "data.flip=true", f"{SOURCE}.num_images=20")
    features = features_for(experiment, "shapes")
    plain = tiny("vqgan_lc", "data.train_size=20")
    images = next(iter(build_data(plain).ordered_train_dataloader()))["image"][:4]
    encoder = extraction.load_encoder("efficientnet-lite0", 32)
    maps = encoder.stages(images, 3)[-1]  # (4, 40, 4, 4)
    torch.testing.assert_close(features.rows(np.arange(4 * PER_IMAGE)), maps.permute(0, 2, 3, 1).flatten(0, 2))
    assert np.array_equal(features.labels(), np.repeat(np.arange(20) % 10, PER_IMAGE))


def test_pooling_and_the_last_feature_map(tiny: TinyExperiment) -> None:
    options = [f"{SOURCE}.num_images=8", "model.quantizer.feature_dim=1280", "model.codebook_size=5"]
    last = tiny("vqgan_lc", *options, f"{SOURCE}.stage=0", f"{SOURCE}.encoder_image_size=64", f"{SOURCE}.pool=2")
    assert codebook_for(last, "shapes").shape == (5, 1280)
    assert len(features_for(last, "shapes")) == 8, "2 x 2 pooled to one an image"


@pytest.mark.parametrize(("name", "size"), [("shapes", 10_000), ("cifar10", None)])
def test_no_number_of_images_means_all(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, name: str, size: int | None
) -> None:
    """Shapes has no end: there it is the set's default size."""
    asked: list[Experiment] = []

    def stop(experiment: Experiment) -> None:
        asked.append(experiment)
        raise ConnectionAbortedError

    monkeypatch.setattr(extraction, "build_data", stop)
    with pytest.raises(ConnectionAbortedError):
        features_for(tiny("vqgan_lc", f"data.name={name}", f"{SOURCE}.num_images=0"), name)
    assert asked[0].data.train_size == size


# ---- the files


def kept_files(experiment: Experiment) -> list[str]:
    folder = Path(experiment.runtime.output_dir) / "codebooks"
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_a_codebook_is_built_once(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny("vqgan_lc")
    first = codebook_for(experiment, "shapes")
    with safe_open(codebook_path(experiment, "shapes"), "pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["source"])["encoder"] == "efficientnet-lite0"
    assert metadata["data"] == "shapes" and metadata["features"] == str(40 * PER_IMAGE)
    monkeypatch.setattr(extraction, "extract", lambda *_: pytest.fail("features are kept"))
    larger = codebook_for(tiny("vqgan_lc", "model.codebook_size=48"), "shapes")
    assert larger.shape == (48, 40)
    monkeypatch.setattr(module, "build_codebook", lambda *_: pytest.fail("codebooks are kept"))
    assert torch.equal(codebook_for(experiment, "shapes"), first)
    assert len(kept_files(experiment)) == 3, "two codebooks, one folder of features, nothing temporary"


@pytest.mark.parametrize(
    "option", ["data.data_seed=1", "data.image_size=32", f"{SOURCE}.seed=1", f"{SOURCE}.num_images=41"]
)
def test_other_images_or_seeds_make_another_codebook(tiny: TinyExperiment, option: str) -> None:
    first, second = tiny("vqgan_lc"), tiny("vqgan_lc", option)
    assert codebook_path(first, "shapes") != codebook_path(second, "shapes")
    assert codebook_path(first, "shapes") != codebook_path(first, "cifar10-export")
    assert codebook_path(first, "shapes") == codebook_path(tiny("vqgan_lc", "seed=7", "data.flip=true"), "shapes")
    assert not torch.equal(codebook_for(first, "shapes"), codebook_for(second, "shapes"))


def test_a_build_that_fails_leaves_nothing(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny("vqgan_lc")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save", full)
    with pytest.raises(OSError, match="No space left"):
        codebook_for(experiment, "shapes")
    monkeypatch.undo()
    (only,) = kept_files(experiment)
    assert only.startswith("features_")


def test_a_build_that_was_stopped_goes_on(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the state that it saved, with the features that are kept, to the same codebook."""
    keys = (f"{SOURCE}.method=kmeans", f"{SOURCE}.iterations=4")
    experiment = tiny("vqgan_lc", *keys)
    monkeypatch.setattr(kmeans, "SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_codebook", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            codebook_for(experiment, "shapes")
    path = codebook_path(experiment, "shapes")
    assert len(kept_files(experiment)) == 2 and path.with_name(f"{path.name}.partial").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(module, "new_state", lambda *_: pytest.fail("there is a state"))
        continued = codebook_for(experiment, "shapes")
    assert kept_files(experiment)[1] == path.name and len(kept_files(experiment)) == 2
    straight = tiny("vqgan_lc", *keys, f"runtime.output_dir={path.parent}/straight")
    assert torch.equal(continued, codebook_for(straight, "shapes"))


def test_a_codebook_is_named_by_all_that_decides_it(tiny: TinyExperiment) -> None:
    plain = codebook_path(tiny("vqgan_lc"), "shapes")
    changes = [f"{SOURCE}.tolerance=0.01", f"{SOURCE}.seed=1", "model.codebook_size=33", "data.data_seed=1"]
    others = [codebook_path(tiny("vqgan_lc", change), "shapes") for change in changes]
    others.append(codebook_path(tiny("vqgan_lc"), "image_folder-12345678"))
    assert len({plain, *others}) == 6


# ---- mistakes


def with_path(tiny: TinyExperiment, path: Path) -> Experiment:
    return tiny("vqgan_lc", f"{SOURCE}.path={path}")


def test_more_codes_than_features(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan_lc", "model.codebook_size=700", f"{SOURCE}.per_class=false")
    with pytest.raises(ValueError, match=r"model\.codebook_size=700 exceeds the 640 features .*source\.num_images"):
        codebook_for(experiment, "shapes")
    assert not codebook_path(experiment, "shapes").exists()


def test_a_class_with_fewer_features_than_codes() -> None:
    with pytest.raises(ValueError, match=r"class 1 has 3 features, fewer than its 20 codes: set source\.per_class"):
        split(np.array([0] * 97 + [1] * 3), 40, per_class=True)


def test_feature_dim_of_another_encoder(tiny: TinyExperiment) -> None:
    with pytest.raises(ValueError, match=r"model\.quantizer\.feature_dim=768: the encoder gives 40"):
        codebook_for(tiny("vqgan_lc", "model.quantizer.feature_dim=768"), "shapes")


@pytest.mark.parametrize(
    ("option", "message"),
    [("method=kmean", r"source\.method='kmean' is none of kmeans, random"), ("tolerance=1.5", r"1\.5 must be in")],
)
def test_options_are_checked_with_the_recipe(tiny: TinyExperiment, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("vqgan_lc", f"{SOURCE}.{option}")


def test_a_file_of_the_wrong_shape(tiny: TinyExperiment, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file({"codebook": torch.zeros(32, 41)}, path)
    with pytest.raises(ValueError, match=r"mine\.safetensors: holds a codebook of shape \(32, 41\).*\(32, 40\)"):
        codebook_for(with_path(tiny, path), "shapes")


def test_a_ready_file_is_used(tiny: TinyExperiment, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    table = torch.randn(32, 40)
    save_file({"codebook": table}, path)
    assert torch.equal(codebook_for(with_path(tiny, path), "shapes"), table)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_broken_or_missing_file(tiny: TinyExperiment, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine\.safetensors: (not a codebook file|no such codebook)"):
        read_codebook(path, (32, 40))


def test_a_file_of_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match=r"weights\.safetensors: not a codebook file"):
        read_codebook(path, (2, 2))


def test_another_quantizer_has_no_codebook_file(tiny: TinyExperiment) -> None:
    with pytest.raises(ValueError, match=r"model\.quantizer\.name=vq: only large_codebook"):
        build_codebook(tiny(), "shapes", Path("unused"))


def test_the_command(
    tmp_path: Path, tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "lc.yaml", tmp_path / "out" / "codes.safetensors"
    recipe.write_text(
        "data: {name: shapes, image_size: 16, val_size: 10}\n"
        "model:\n  name: vqgan_lc\n  codebook_size: 20\n"
        "  quantizer:\n    feature_dim: 40\n"
        "    source: {encoder: efficientnet-lite0, encoder_image_size: 32, stage: 3, pool: 1}\n"
    )
    keys = [f"{SOURCE}.num_images=10", f"{SOURCE}.iterations=2", f"runtime.output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["build_codebook", str(recipe), "--out", str(out), *keys])
    main()
    assert read_codebook(out, (20, 40)).shape == (20, 40)
    output = capsys.readouterr().out
    assert "20 of 160 features by kmeans, 20 passes, 0 empty clusters re-seeded" in output and str(out) in output
    with safe_open(out, "pt") as file:
        assert file.metadata()["passes"] == "20" and float(file.metadata()["inertia"]) > 0
