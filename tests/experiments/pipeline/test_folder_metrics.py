"""evaluate --images: other people's images, by the code and the protocol ids of our own models."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from token_cases import save
from torch import Tensor

from datamodules.arrays import to_unit_range
from datamodules.shapes import render
from experiments import evaluate
from lightning_modules import Tokenizer
from lightning_modules.metrics import TokenizerMetrics, extractors
from lightning_modules.metrics.extractors import FidelityExtractor, to_uint8
from lightning_modules.metrics.tokenizer import MetricsConfig

KEYS = ["model.metrics.extractor=efficientnet-lite0", "model.metrics.extractor_image_size=32"]
KEYS += ["model.metrics.lpips=none", "runtime.accelerator=cpu"]
DINO = "model.metrics.extractor=dinov2-vit-s-14"
NUM = 12


def write(folder: Path, images: Tensor, ending: str = "png") -> Path:
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:03}.{ending}")
    return folder


@pytest.fixture
def originals() -> Tensor:
    return render(np.arange(NUM), "val", 16)


@pytest.fixture
def reference(originals: Tensor, tmp_path: Path) -> Path:
    return write(tmp_path / "val", originals)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object, keys: list[str] = KEYS) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["evaluate", *map(str, arguments), *keys])
        evaluate.main()


def result_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object, keys: list[str] = KEYS
) -> dict[str, Any]:
    call(monkeypatch, *arguments, "--json", keys=keys)
    return dict(json.loads(capsys.readouterr().out))


def test_reconstructions_as_files_get_the_numbers_and_ids_of_the_validation(
    tiny: TinyExperiment,
    originals: Tensor,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = Tokenizer.from_pretrained(save(tiny("vqgan"), tmp_path / "final.ckpt"))
    made, images = tokenizer.reconstruct(to_unit_range(originals)), to_unit_range(originals)
    config = MetricsConfig("efficientnet-lite0", 32, "none", kid=True, precision_recall=True)
    validation = TokenizerMetrics(config, 32, 16)
    validation.update(tokenizer.encode(images).indices, images, made)
    expected = {name: float(value) for name, value in validation.compute().items()}

    theirs = write(tmp_path / "theirs", to_uint8(made))
    found = result_of(monkeypatch, capsys, "--images", theirs, "--reference", reference, "--batch-size", 5)
    assert (found["images"], found["reference"], found["same_names"], found["image_size"]) == (NUM, NUM, NUM, 16)
    for name in ("rfid", "ris", "ris_std", "rkid", "precision", "recall"):
        assert found["metrics"][name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        assert found["protocols"][name] == validation.protocols()[name]
    assert found["protocols"]["rfid"] == f"rfid/efficientnet-lite0@32px/val-vs-val/n{NUM}/uint8"
    assert found["metrics"]["psnr"] == pytest.approx(expected["psnr"], abs=0.05), "rounded to whole levels"
    assert found["protocols"]["psnr"] == f"psnr/rgb-range1-per-image/uint8/n{NUM}"
    assert not found["metrics"].keys() & {"usage/val", "lpips"}


def test_generated_images_are_compared_with_all_of_the_reference(
    originals: Tensor,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs = write(tmp_path / "theirs", render(np.arange(100, 109), "train", 16), "jpg")
    found = result_of(monkeypatch, capsys, "--images", theirs, "--reference", reference)
    assert found["protocols"]["fid"] == f"fid/efficientnet-lite0@32px/generated-vs-val{NUM}/n9/uint8"
    assert found["metrics"].keys() == {"fid", "is", "is_std", "kid", "precision", "recall"}
    assert found["same_names"] == 9, "said, and not enough"
    same = ("--images", reference, "--reference", reference, "--reference-name", "train")
    found = result_of(monkeypatch, capsys, *same, "--unpaired")
    assert found["metrics"]["fid"] == pytest.approx(0, abs=1e-3) and "psnr" not in found["metrics"]
    assert found["protocols"]["fid"].split("/")[2] == f"generated-vs-train{NUM}"
    call(monkeypatch, *same)
    lines = capsys.readouterr().out.splitlines()
    title = f"{NUM} images, {NUM} of train, 16 pixels; names in common: {NUM}"
    assert lines[0] == title
    call(monkeypatch, *same, "--dry-run")
    assert capsys.readouterr().out.splitlines() == [title]
    assert any(line.split()[:2] == ["psnr", "inf"] for line in lines)


def test_images_of_other_sizes_are_brought_to_one_when_it_is_named(
    originals: Tensor,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wide = torch.nn.functional.pad(originals, (4, 4, 0, 0))
    theirs = write(tmp_path / "theirs", wide)
    with pytest.raises(SystemExit):
        call(monkeypatch, "--images", theirs, "--reference", reference)
    error = capsys.readouterr().err
    assert "000.png: 24 x 16 pixels" in error and "000.png: 16 x 16 pixels" in error and "--image-size 256" in error
    found = result_of(monkeypatch, capsys, "--images", theirs, "--reference", reference, "--image-size", 16)
    assert found["metrics"]["l1"] == 0, "the middle was kept"


def test_mistakes_are_one_line(
    originals: Tensor,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = write(tmp_path / "few", originals[:3])
    damaged = write(tmp_path / "damaged", originals)
    (damaged / "004.png").write_bytes((damaged / "004.png").read_bytes()[:60])

    def refused(*arguments: object, keys: list[str] = KEYS) -> str:
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments, keys=keys)
        return capsys.readouterr().err.splitlines()[-1]

    both = ("--images", reference, "--reference", reference)
    assert "--images: 3 images" in refused("--images", few, "--reference", reference)
    assert "damaged/004.png: cannot be decoded" in refused("--images", damaged, "--reference", reference)
    assert "nowhere" in refused("--images", tmp_path / "nowhere", "--reference", reference)
    assert "name a checkpoint, or images" in refused("--images", reference)
    assert "name a checkpoint, or images" in refused("x.ckpt", *both)
    assert "--data-dir x: has no meaning for images" in refused(*both, "--data-dir", "x")
    assert "--unpaired True: has no meaning for a checkpoint" in refused("x.ckpt", "--unpaired")
    assert "torch finds no GPU here" in refused(*both, keys=["runtime.accelerator=gpu"])
    assert "data.val_size: with --images only" in refused(*both, keys=["data.val_size=3"])
    assert "did you mean 'dinov2-vit-" in refused(*both, keys=["model.metrics.extractor=dinov2-vit-m-14"])


# ---- torch-fidelity's other networks


class Tiny(torch.nn.Module):
    INPUT_IMAGE_SIZE = 224

    def __init__(self, name: str, layers: list[str], verbose: bool) -> None:
        super().__init__()
        assert layers == ["deep"]

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "deep"

    def forward(self, images: Tensor) -> tuple[Tensor]:
        assert images.dtype == torch.uint8
        return (torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1),)


def test_other_judges_by_a_key(
    reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known

    assert set(extractors.REGISTERED) <= set(known)
    monkeypatch.setitem(known, "dinov2-vit-s-14", Tiny)
    both, keys = (
        ("--images", reference, "--reference", reference),
        ["model.metrics.extractor=dinov2-vit-s-14", *KEYS[2:]],
    )
    found = result_of(monkeypatch, capsys, *both, keys=keys)
    assert found["protocols"]["rfid"] == f"rfid/dinov2-vit-s-14@224px/val-vs-val/n{NUM}/uint8"
    assert "rkid" in found["metrics"] and "ris" not in found["metrics"], "it knows no classes"
    assert isinstance(extractors.build_extractor("dinov2-vit-s-14", 16), FidelityExtractor)
    with pytest.raises(ValueError, match="resizes images itself"):
        extractors.build_extractor("dinov2-vit-s-14", 16, 64)


def test_weights_of_zeros_are_no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY as known

    class Blind(Tiny):
        def forward(self, images: Tensor) -> tuple[Tensor]:
            return (torch.zeros(len(images), 4),)

    monkeypatch.setitem(known, "vgg16", Blind)
    with pytest.raises(ValueError, match="vgg16: sees no difference between black and white"):
        extractors.build_extractor("vgg16", 16)


def test_missing_weights_are_one_line(
    reference: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network in this test")

    monkeypatch.setattr(torch.hub, "load", refuse)
    with pytest.raises(SystemExit):
        call(monkeypatch, "--images", reference, "--reference", reference, keys=[DINO])
    error = capsys.readouterr().err
    assert "dinov2-vit-s-14: its weights are neither in" in error and "no network in this test" in error
