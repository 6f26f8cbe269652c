"""The same cell twice is the same record but for time and memory, whatever the clock and the names of folders."""

import itertools
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyExperiment
from PIL import Image
from vim_cases import tiny_vim

from datamodules import ImageFolderConfig, ImageFolderDataModule
from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.pipeline.build import restore
from experiments.pipeline.training import train
from experiments.runtime.records import PACKAGES, Record

PROJECT = Path(__file__).parents[2]
MEASURED = {"images_per_second", "wall_seconds", "peak_memory_bytes", "peak_device_memory_bytes"}
ODD_NAME = "a folder, ünï©ode 漢字 [1] {x} 'q' %s"


def without_time(record: Record) -> Record:
    return {key: value for key, value in record.items() if key not in MEASURED}


def backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is an hour before the one before."""
    hours = itertools.count()
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start - 3600.0 * next(hours))


def in_folder(experiment: Experiment, folder: Path) -> Experiment:
    values = experiment.identity() | {"runtime": asdict(experiment.runtime) | {"output_dir": str(folder)}}
    return parse(values, "moved")


@pytest.mark.parametrize("name", ["vqgan_ema", "vqgan_lc", "vit_vqgan"])
def test_a_cell_twice_is_one_record(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The second time in folders with odd names, and with a clock that goes backwards."""
    options = ["data.flip=true", "model.loss.adversarial=0.1"]
    if name == "vqgan_ema":
        options += ["model.quantizer.dead_code_threshold=0.9"]  # codes are re-seeded at random
    experiment = tiny(name, *options)
    first = train(in_folder(experiment, tmp_path / "a"), "x", tmp_path / "a/run")
    backwards(monkeypatch)
    folder = tmp_path / ODD_NAME
    second = train(in_folder(experiment, folder), "x", folder / "run")
    assert json.dumps(without_time(first), sort_keys=True) == json.dumps(without_time(second), sort_keys=True)
    assert second["wall_seconds"] > 0 and second["images_per_second"] > 0
    assert 2**20 < second["peak_memory_bytes"] < 2**36
    restored, _ = restore(folder / "run/checkpoints/final.ckpt")
    assert restored.digest() == experiment.digest()
    (written,) = (folder / "records").iterdir()
    assert json.loads(written.read_text()) == json.loads(json.dumps(second))


def test_a_chain_twice_is_one_record(tiny: TinyExperiment, tmp_path: Path) -> None:
    found = [train(tiny_vim(tiny, f"runtime.output_dir={tmp_path / run}"), "x", tmp_path / run / "vim") for run in "ab"]
    assert without_time(found[0]) == without_time(found[1])
    assert all(record["images_per_second"] > 0 for record in found)


OTHER_PROCESS = """
import json, sys
from pathlib import Path
from conftest import load_once  # of the fixture `tiny`, which draws no random numbers for encoders
from lightning_modules.losses import perceptual
from lightning_modules.metrics import extractors
extractors.load_encoder = perceptual.load_encoder = load_once
from experiments.config.compose import parse
from experiments.pipeline.training import train
train(parse(json.loads(sys.argv[1]), "test"), "x", Path(sys.argv[2]))
"""


def test_another_process_makes_the_same_record(tiny: TinyExperiment, tmp_path: Path) -> None:
    """With another order of sets and other addresses."""
    experiment = tiny("vqgan", "data.flip=true", "model.loss={adversarial: 0.1, perceptual: 0.1}")
    here = train(experiment, "x", tmp_path / "here")
    values = experiment.identity() | {"runtime": asdict(experiment.runtime) | {"output_dir": str(tmp_path / "there")}}
    environment = os.environ | {
        "PYTHONHASHSEED": "123",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests'}",
    }
    command = [sys.executable, "-c", OTHER_PROCESS, json.dumps(values), str(tmp_path / "there/run")]
    done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "there/records").iterdir()
    assert without_time(json.loads(path.read_text())) == without_time(json.loads(json.dumps(here)))


def test_a_record_says_what_it_was_made_by(tiny: TinyExperiment, tmp_path: Path) -> None:
    made_on = train(tiny("vqgan", "trainer.max_steps=2"), "x", tmp_path / "run")["environment"]
    assert set(PACKAGES) | {"commit", "dirty", "code", "python", "machine"} <= made_on.keys()
    assert len(made_on["code"]) == 12 and isinstance(made_on["dirty"], bool)


def test_image_files_of_any_name(tmp_path: Path) -> None:
    """Spaces, other alphabets, a line break, and bytes that are no UTF-8."""
    names: list[Any] = [b"a b.png", "ünï 漢字.png".encode(), b"line\nbreak.png", b"\xff\xfe.png"]
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for split, klass in itertools.product(("train", "val"), ("one class", "été")):
        folder = tmp_path / ODD_NAME / split / klass
        folder.mkdir(parents=True)
        for name in names:
            with open(os.fsencode(folder) + b"/" + name, "wb") as file:
                Image.fromarray(pixels).save(file, "png")
    config = ImageFolderConfig(image_size=16, batch_size=8)
    data = ImageFolderDataModule(config, str(tmp_path / ODD_NAME))
    data.prepare_data()
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch["image"].shape == (8, 3, 16, 16) and data.classes == ["one class", "été"]
    assert data.facts["num_images"] == {"train": 8, "val": 8} and len(data.data_id) == len("image_folder-12345678")
