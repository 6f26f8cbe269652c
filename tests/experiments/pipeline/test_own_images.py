"""reconstruct, tokenize --images and detokenize on files of any size."""

import csv
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from token_cases import save

from datamodules.arrays import to_unit_range
from datamodules.files import frame
from datamodules.shapes import render
from experiments import detokenize, export, reconstruct, tokenize
from lightning_modules import Tokenizer
from lightning_modules.metrics.reconstruction import ReconstructionMetrics


@pytest.fixture
def model(tiny: TinyExperiment, tmp_path: Path) -> str:
    return str(save(tiny("vqgan"), tmp_path / "final.ckpt"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five photographs of three sizes and two formats, one below a folder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    pictures = render(np.arange(5), "val", 48).permute(0, 2, 3, 1).numpy()
    names = ["a.png", "b.jpg", "c.png", "sub/a.png", "übung 1.png"]
    for picture, name, width in zip(pictures, names, (48, 48, 30, 40, 26), strict=True):
        Image.fromarray(picture[:36, :width]).save(folder / name)
    return folder


def call(monkeypatch: pytest.MonkeyPatch, command: ModuleType, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    command.main()


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_reconstructions_are_measured_by_file(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str
) -> None:
    out = tmp_path / "out"
    options = ["--out", out, "--fit", fit, "--batch-size", 2, "--accelerator", "cpu", "--lpips", "none"]
    call(monkeypatch, reconstruct, model, photos, *options)
    assert {path.name for path in out.iterdir()} == {"pairs", "sheet.png", "images.npz", "metrics.csv", "summary.json"}
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == ["a.png", "b.jpg", "c.png", "sub/a.png", "übung 1.png"]
    summary = json.loads((out / "summary.json").read_text())
    assert summary["fit"].startswith(f"{fit}: ") and summary["images"] == 5
    assert summary["protocols"]["psnr"] == f"psnr/rgb-range1-per-image/{fit}/n5"
    for name in ("psnr", "ssim"):
        assert summary["metrics"][name] == pytest.approx(np.mean([float(row[name]) for row in rows]))

    tokenizer = Tokenizer.from_pretrained(model)
    framed, box = frame(Image.open(photos / "a.png").convert("RGB"), 16, fit)
    image = to_unit_range(framed)[None]
    top, left, height, width = box
    inside = (..., slice(top, top + height), slice(left, left + width))
    made = tokenizer.reconstruct(image)
    expected = ReconstructionMetrics(16, lpips="none", feature_distance=False)
    expected.update(made[inside], image[inside])
    assert float(rows[0]["psnr"]) == pytest.approx(float(expected.compute()["psnr"]), rel=1e-4)
    with np.load(out / "images.npz") as content:
        assert content["names"].tolist() == [row["file"] for row in rows]
        assert content["originals"].shape == content["reconstructions"].shape == (5, 16, 16, 3)
        assert np.array_equal(content["originals"][0], framed.permute(1, 2, 0).numpy())
        assert np.array_equal(content["indices"][0], tokenizer.encode(image).indices[0].numpy())
    pair = pixels(out / "pairs/a.png")
    assert pair.shape == (height, 3 * width, 3)
    original, reconstruction, error = (pair[:, i * width : (i + 1) * width].astype(int) for i in range(3))
    assert np.array_equal(error, abs(original - reconstruction)) and error.any()
    assert pixels(out / "sheet.png").shape == (2 * 18 + 2, 12 * 18 + 2, 3)

    with pytest.raises(SystemExit):
        call(monkeypatch, reconstruct, model, photos, *options)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_tokens_become_the_reconstructions_again(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fit: str
) -> None:
    tokens, images, pairs = tmp_path / "tokens", tmp_path / "images", tmp_path / "pairs"
    call(monkeypatch, tokenize, model, "runtime.accelerator=cpu", "--images", photos, "--out", tokens, "--fit", fit)
    call(monkeypatch, detokenize, model, tokens, "--out", images, "--accelerator", "cpu", "--batch-size", 2)
    call(
        monkeypatch, reconstruct, model, photos, "--out", pairs, "--fit", fit, "--accelerator", "cpu", "--lpips", "none"
    )
    ids, note = np.load(tokens / "tokens.npy"), json.loads((tokens / "tokens.json").read_text())
    assert ids.shape == (5, 8, 8) and ids.dtype == np.dtype("<i4")
    assert note["names"] == ["a.png", "b.jpg", "c.png", "sub/a.png", "übung 1.png"]
    with np.load(pairs / "images.npz") as content:
        assert np.array_equal(ids, content["indices"])
    for name in ("a.png", "b.png", "c.png", "sub/a.png", "übung 1.png"):
        made, pair = pixels(images / name), pixels(pairs / "pairs" / name)
        width = pair.shape[1] // 3
        assert abs(made.astype(int) - pair[:, width : 2 * width]).max() <= 1, "another batch size is rounded otherwise"

    np.save(tmp_path / "some.npy", ids[:2])
    call(monkeypatch, detokenize, model, tmp_path / "some.npy", "--out", tmp_path / "two", "--accelerator", "cpu")
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["000000.png", "000001.png"]


def test_a_narrow_image_has_no_ssim(model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (200, 3)).save(photos / "narrow.png")
    out = tmp_path / "out"
    options = ["--out", out, "--fit", "pad", "--accelerator", "cpu", "--lpips", "none"]
    call(monkeypatch, reconstruct, model, photos, *options)
    with open(out / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = {row["file"]: row for row in csv.DictReader(file)}
    assert rows["narrow.png"]["ssim"] == "" and rows["narrow.png"]["psnr"] != ""
    summary = json.loads((out / "summary.json").read_text())
    assert summary["protocols"]["ssim"].endswith("/pad/n5") and summary["protocols"]["psnr"].endswith("/pad/n6")
    others = [float(row["ssim"]) for name, row in rows.items() if name != "narrow.png"]
    assert summary["metrics"]["ssim"] == pytest.approx(np.mean(others))


def test_mistakes_are_one_line(
    model: str,
    photos: Path,
    tiny: TinyExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(command: ModuleType, *arguments: object) -> str:
        with pytest.raises(SystemExit) as status:
            call(monkeypatch, command, *arguments)
        assert status.value.code == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    tokens, out, cpu = tmp_path / "tokens", ("--out", tmp_path / "out"), ("--accelerator", "cpu")
    call(monkeypatch, tokenize, model, "runtime.accelerator=cpu", "--images", photos, "--out", tokens)
    other = save(tiny("vqgan"), tmp_path / "other.ckpt", first_used=9)
    assert "made by a tokenizer of weights" in refused(detokenize, other, tokens, *out, *cpu)
    np.save(tmp_path / "bad.npy", np.full((1, 8, 8), 99))
    assert "token ids lie in [0, 32)" in refused(detokenize, model, tmp_path / "bad.npy", *out, *cpu)
    np.save(tmp_path / "flat.npy", np.zeros((1, 64), int))
    assert "not whole numbers (N, h, w)" in refused(detokenize, model, tmp_path / "flat.npy", *out, *cpu)
    (tokens / "tokens.json").write_text("{}")
    assert "tokens.json: not readable" in refused(detokenize, model, tokens, *out, *cpu)
    abacus = ("--accelerator", "abacus")
    assert "runtime.accelerator='abacus' is none of" in refused(reconstruct, model, photos, *out, *abacus)
    images = ("--images", photos, "--out", tmp_path / "new")
    assert "torch finds no GPU here" in refused(tokenize, model, "runtime.accelerator=gpu", *images)
    assert "only runtime.accelerator" in refused(tokenize, model, "data.val_size=3", "--images", photos, *out)
    assert "no such folder" in refused(reconstruct, model, tmp_path / "absent", *out, *cpu)
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = ("--images", tmp_path / "broken.png")
    assert "broken.png: cannot be decoded" in refused(tokenize, model, *broken, "--out", tmp_path / "new")


def test_images_that_cannot_be_decoded_are_named_and_the_others_are_kept(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("b0.png", "b1.png", "z.png"):  # a whole batch, and a part of one
        (photos / name).write_bytes(b"no image")
    size = ("--batch-size", 2)
    for command, arguments in (
        (reconstruct, (model, photos, "--out", tmp_path / "out", *size, "--accelerator", "cpu", "--lpips", "none")),
        (tokenize, (model, "runtime.accelerator=cpu", "--images", photos, "--out", tmp_path / "tokens", *size)),
    ):
        with pytest.raises(SystemExit) as status:
            call(monkeypatch, command, *arguments)
        assert status.value.code == 1
        error = capsys.readouterr().err.splitlines()[-1]
        assert "3 of 8 images are not in " in error and "b0.png: cannot be decoded" in error and "and 1 more" in error
    images, note = np.load(tmp_path / "out/images.npz"), json.loads((tmp_path / "tokens/tokens.json").read_text())
    good = ["a.png", "b.jpg", "c.png", "sub/a.png", "übung 1.png"]
    assert images["names"].tolist() == note["names"] == good and [*note["left_out"]] == ["b0.png", "b1.png", "z.png"]
    assert (images["indices"] == np.load(tmp_path / "tokens/tokens.npy")).all() and len(images["originals"]) == 5
    for number, name in enumerate(good):
        pair = pixels(tmp_path / "out/pairs" / Path(name).with_suffix(".png"))
        assert (pair[:, :16] == images["originals"][number]).all(), name
    detokenized = tmp_path / "again"
    call(monkeypatch, detokenize, model, tmp_path / "tokens", "--out", detokenized, "--accelerator", "cpu")
    assert (pixels(detokenized / "sub/a.png") == images["reconstructions"][3]).all()


def test_a_tokenizer_without_codes_reconstructs_but_has_no_tokens(
    tiny: TinyExperiment, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from experiments.pipeline.build import build_model

    torch.manual_seed(0)
    build_model(tiny("vqgan", "model.quantizer.name=none", "model.codebook_size=0")).save_pretrained(tmp_path / "none")
    options = ["--out", tmp_path / "out", "--accelerator", "cpu", "--lpips", "none"]
    call(monkeypatch, reconstruct, tmp_path / "none", photos / "a.png", *options)
    with pytest.raises(SystemExit):
        call(monkeypatch, tokenize, tmp_path / "none", "--images", photos, "--out", tmp_path / "tokens")
    assert "has no codes" in capsys.readouterr().err


def test_nothing_is_written_by_a_dry_run(
    model: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, tokenize, model, "--images", photos, "--out", tmp_path / "tokens", "runtime.accelerator=cpu")
    capsys.readouterr()
    before = sorted(tmp_path.rglob("*"))
    out = ("--out", tmp_path / "out", "--dry-run")
    call(monkeypatch, reconstruct, model, photos, *out)
    assert f"{tmp_path}/out: 5 images at 16 pixels (crop)" in capsys.readouterr().out
    call(monkeypatch, tokenize, model, "--images", photos, *out)
    assert f"{tmp_path}/out: tokens of 5 images" in capsys.readouterr().out
    call(monkeypatch, detokenize, model, tmp_path / "tokens", *out)
    assert f"{tmp_path}/out: 5 images" in capsys.readouterr().out
    call(monkeypatch, export, model, "--to", "onnx", *out)
    assert f"{tmp_path}/out: vqgan as onnx" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before
    for command, *rest in ((reconstruct, photos), (detokenize, tmp_path / "tokens"), (export,)):
        call(monkeypatch, command, model, *rest, "--print-config")
        assert "codebook_size: 32" in capsys.readouterr().out
