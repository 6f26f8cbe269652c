"""Features on disk: killed and continued, and folders that are damaged, of other data, or do not fit on the disk."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import TinyExperiment

from experiments.config.experiment import Experiment
from experiments.pipeline.codebooks import extraction
from experiments.pipeline.codebooks.build import build_codebook, codebook_path
from experiments.pipeline.codebooks.extraction import features_folder, features_for
from experiments.runtime import appending, files

SOURCE = "model.quantizer.source"
PER_IMAGE = 16  # features: 4 x 4 at stage 3 of 32 pixels
KILLED = """
import json, os, signal, sys
import torch
torch.set_num_threads(1)
from experiments.pipeline.codebooks import extraction
from experiments.runtime import appending, files
from experiments.config.compose import parse
appending.SAVE_SECONDS, calls, encode = 0.0, 0, extraction.patch_features
def patch_features(*arguments):
    global calls
    calls += 1
    if calls == 5:  # the first call is a trial
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(*arguments)
extraction.patch_features = patch_features
extraction.features_for(parse(json.loads(sys.argv[1]), "test"), "shapes")
"""


def tiny_batches(tiny: TinyExperiment, *options: str) -> Experiment:
    """40 images in five batches of eight."""
    return tiny("vqgan_lc", "data.val_batch_size=8", *options)


def values_of(experiment: Experiment) -> str:
    return json.dumps(experiment.identity() | {"runtime": vars(experiment.runtime)})


def metadata_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metadata.json").read_text())


def elsewhere(experiment: Experiment, folder: Path) -> Experiment:
    return replace(experiment, runtime=replace(experiment.runtime, output_dir=str(folder)))


class Killed(NamedTuple):
    experiment: Experiment
    folder: Path  # NAME.partial


@pytest.fixture
def killed(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> Killed:
    """An extraction that was stopped after three of its five batches, by an exception."""
    experiment, encode, calls = tiny_batches(tiny), extraction.patch_features, 0

    def patch_features(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return encode(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(appending, "SAVE_SECONDS", 0.0)
        patch.setattr(extraction, "patch_features", patch_features)
        with pytest.raises(KeyboardInterrupt):
            features_for(experiment, "shapes")
    folder = features_folder(experiment, "shapes")
    assert not folder.exists()
    return Killed(experiment, folder.with_name(f"{folder.name}.partial"))


def test_a_killed_process_is_continued_to_the_same_bytes(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny_batches(tiny)
    folder = features_folder(experiment, "shapes")
    partial = folder.with_name(f"{folder.name}.partial")
    process = subprocess.run([sys.executable, "-c", KILLED, values_of(experiment)], check=False)
    assert process.returncode == -9 and not folder.exists()
    assert metadata_of(partial)["images_done"] == 24
    with open(partial / "features.npy", "ab") as file:
        file.write(b"what was written after the last save" * 2000)  # more than there is to come
    first_images = []
    with pytest.MonkeyPatch.context() as patch:
        loader = extraction.ImageDataModule.ordered_train_dataloader
        patch.setattr(
            extraction.ImageDataModule,
            "ordered_train_dataloader",
            lambda self, first=0: (first_images.append(first), loader(self, first))[1],
        )
        continued = features_for(experiment, "shapes")
    assert first_images == [24], "what is done is not done again"
    straight = features_for(elsewhere(experiment, tmp_path / "straight"), "shapes")
    for name in ("features.npy", "labels.npy", "metadata.json"):
        assert continued.path.with_name(name).read_bytes() == straight.path.with_name(name).read_bytes()
    assert not partial.exists() and metadata_of(folder)["images_done"] == 40


def test_metadata_says_what_the_features_are_of(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan_lc")
    kept = features_for(experiment, "shapes")
    metadata = metadata_of(features_folder(experiment, "shapes"))
    assert (metadata["features"], metadata["dims"], metadata["dtype"]) == (*kept.shape, "float32")
    assert (metadata["encoder"], metadata["stage"], metadata["data_id"]) == ("efficientnet-lite0", 3, "shapes")
    assert (metadata["images"], metadata["encoder_image_size"], metadata["image_size"]) == (40, 32, 16)


def test_labels_of_other_images_are_refused(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan_lc")
    assert len(features_for(experiment, "shapes")) == 40 * PER_IMAGE
    folder = features_folder(experiment, "shapes")
    np.save(folder / "labels.npy", np.zeros(40 * PER_IMAGE, np.int64))
    with pytest.raises(ValueError, match=f"{folder.name}: of other images than the training set's"):
        features_for(experiment, "shapes")


COUNTED = """
import json, sys
import torch
torch.set_num_threads(1)
from experiments.pipeline.codebooks import extraction
from experiments.config.compose import parse
extract = extraction.extract
def counted(*arguments):
    with open(sys.argv[2], "a") as file:
        file.write("once")
    extract(*arguments)
extraction.extract = counted
extraction.features_for(parse(json.loads(sys.argv[1]), "test"), "shapes")
"""


def test_two_workers_extract_once(tiny: TinyExperiment, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COUNTED, values_of(tiny_batches(tiny)), str(tmp_path / "calls")]
    workers = [subprocess.Popen(command) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert (tmp_path / "calls").read_text() == "once"


# ---- mistakes, each before the long work


def cut(folder: Path) -> None:
    path = folder / "features.npy"
    path.write_bytes(path.read_bytes()[:-1000])


def edit(folder: Path, **values: object) -> None:
    (folder / "metadata.json").write_text(json.dumps(metadata_of(folder) | values))


DAMAGE: list[tuple[Callable[[Path], Any], str]] = [
    (lambda folder: edit(folder, encoder="other"), "made with encoder=other, here it is efficientnet-lite0; delete"),
    (lambda folder: edit(folder, data_id="cifar10-export"), "made with data_id=cifar10-export, here it is shapes"),
    (lambda folder: edit(folder, images=7), "made with images=7, here it is 40"),
    (lambda folder: edit(folder, images_done=41), "made with images_done=41"),
    (lambda folder: (folder / "metadata.json").write_text("{"), r"metadata\.json: not readable .*delete"),
    (lambda folder: (folder / "metadata.json").write_text("[]"), r"metadata\.json: not readable .*delete"),
    (cut, r"features\.npy: .*cut off.*delete"),
    (lambda folder: (folder / "features.npy").unlink(), r"features\.npy: .*cut off.*delete"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_damaged_or_foreign_beginning(
    killed: Killed, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], Any], message: str
) -> None:
    damage(killed.folder)
    monkeypatch.setattr(extraction, "append", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=message):
        features_for(killed.experiment, "shapes")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        *DAMAGE,
        (lambda folder: (folder / "features.npy").write_bytes(b""), r"features\.npy: damaged or cut off"),
        (lambda folder: np.save(folder / "features.npy", np.zeros((640, 40))), r"features\.npy: damaged .*float64"),
        (lambda folder: (folder / "features.npy").write_bytes(b"PK\x03\x04 no zip"), r"features\.npy: damaged"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(3, np.int64)), "640 features but 3 labels"),
    ],
)
def test_damaged_or_foreign_features(tiny: TinyExperiment, damage: Callable[[Path], Any], message: str) -> None:
    experiment = tiny("vqgan_lc")
    features_for(experiment, "shapes")
    damage(features_folder(experiment, "shapes"))
    with pytest.raises(ValueError, match=message):
        build_codebook(experiment, "shapes", codebook_path(experiment, "shapes"))


def full_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = files.shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)


def test_the_disk_is_checked_first(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 40 * PER_IMAGE * (40 * 4 + 8)  # features of 40 floats, labels
    full_disk(monkeypatch, needed - 1)
    monkeypatch.setattr(extraction, "append", lambda *_: pytest.fail("too late"))
    with pytest.raises(ValueError, match=rf"needs {needed:,} bytes .* has {needed - 1:,} .*output_dir"):
        features_for(tiny("vqgan_lc"), "shapes")
    monkeypatch.undo()


def test_what_is_extracted_needs_no_more_room(killed: Killed, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk(monkeypatch, 16 * PER_IMAGE * 160)  # of the 16 images that are left
    assert len(features_for(killed.experiment, "shapes")) == 40 * PER_IMAGE


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (f"{SOURCE}.encoder=efficientnet-lite9", "encoder 'efficientnet-lite9' is neither"),
        (f"{SOURCE}.stage=9", r"source\.stage=9: efficientnet-lite0 has 5 stages"),
        (f"{SOURCE}.pool=5", r"source\.pool=5: the map has only \(4, 4\) patches"),
        ("model.codebook_size=641", "codebook_size=641 exceeds the 640 features"),
        ("model.quantizer.feature_dim=41", "feature_dim=41: the encoder gives 40"),
    ],
)
def test_a_wrong_option_leaves_nothing(tiny: TinyExperiment, option: str, message: str) -> None:
    experiment = tiny("vqgan_lc", option)
    with pytest.raises(ValueError, match=message):
        build_codebook(experiment, "shapes", codebook_path(experiment, "shapes"))
    assert not (Path(experiment.runtime.output_dir) / "codebooks").exists()
