"""`experiments.leaderboard` on public files, a run, an exported folder, and what cannot be read."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny_experiment
from parity_vectors import VECTORS, load_weights
from safetensors.torch import save_file

import experiments.evaluate
import experiments.leaderboard
from experiments.importers import Options
from experiments.importers.convert import import_checkpoint
from experiments.pipeline import leaderboard
from experiments.pipeline.build import build_model
from lightning_modules.base import Setting

METRICS = ["model.metrics.extractor=efficientnet-lite0", "model.metrics.lpips=none", "runtime.accelerator=cpu"]
DATA = ["data.train_size=16", "data.val_size=8", "model.metrics.extractor_image_size=32"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """IBQ files, a TiTok with its config.json, an exported model of this suite, one that is cut off, other files."""
    folder = tmp_path / "checkpoints"
    (folder / "titok").mkdir(parents=True)
    (folder / "ibq").mkdir()
    shutil.copy(VECTORS / "ibq/weights.safetensors", folder / "ibq.safetensors")
    shutil.copy(VECTORS / "titok/weights.safetensors", folder / "titok/model.safetensors")
    (folder / "titok/config.json").write_text('{"model": {"vq_model": {"use_l2_norm": false}}}')
    raw = {key: x for key, x in load_weights("ibq").items() if not key.startswith("model_ema.")}
    save_file(raw, folder / "ibq/raw.safetensors")  # which its keys would make a taming's
    build_model(tiny_experiment(tmp_path), Setting(16, for_use=True)).save_pretrained(folder / "exported")
    (folder / "cut.ckpt").write_bytes(b"PK" + bytes(99))
    torch.save({"fc.weight": torch.zeros(1)}, folder / "other.pt")
    (folder / "notes.txt").write_text("no weights")
    (folder / "circle").symlink_to(folder)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    out = ["--output-dir", str(folder.parent / "runs"), "--data", "shapes", "--image-size", "32"]
    monkeypatch.setattr(sys, "argv", ["leaderboard", str(folder), *out, *METRICS, *DATA, *arguments])
    experiments.leaderboard.main()


def test_one_table_of_all_that_can_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(monkeypatch, folder, "--dry-run")
    planned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert [line.split(":")[0].strip() for line in planned].count("to be measured") == 4
    assert len(planned) == 6 and not (tmp_path / "runs").exists(), "and two cannot be"
    run(monkeypatch, folder)
    printed = capsys.readouterr().out
    (page,) = (tmp_path / "runs/leaderboard").glob("shapes*.md")
    text = page.read_text()
    assert text in printed and "rFD (efficientnet-lite0)" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    found = {row[0]: row[1:5] for row in rows[1:]}
    assert found == {
        "ibq.safetensors": ["ibq", "128 x 8", "16 x 16", "32"],
        "ibq/raw.safetensors": ["ibq", "128 x 8", "16 x 16", "32"],
        "titok/model.safetensors": ["titok", "64 x 12", "1 x 8", "32"],
        "exported": ["this suite", "32 x 8", "8 x 8", "16"],
    }
    distances = [float(row[5]) for row in rows[1:]]
    assert distances == sorted(distances), "the best first"
    assert "- `cut.ckpt`: not readable as a checkpoint" in text
    assert "- `other.pt`: keys such as 'fc.weight' are of none of taming, enhancing" in text

    # the same number as experiments.evaluate's, of the imported file
    import_checkpoint("ibq", folder / "ibq.safetensors", tmp_path / "a.ckpt", Options(image_size=32))
    arguments = [str(tmp_path / "a.ckpt"), "--data", "shapes", "--output-dir", str(tmp_path / "other"), "--json"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, *METRICS, *DATA])
    experiments.evaluate.main()
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"]
    records = [json.loads(path.read_text()) for path in (tmp_path / "runs/leaderboard").glob("*.json")]
    ours = next(r for r in records if r["family"] == "ibq" and r["metrics"]["psnr"] == pytest.approx(metrics["psnr"]))
    assert ours["metrics"] == pytest.approx(metrics)

    # again: nothing is measured, but for what another protocol asks
    monkeypatch.setattr(leaderboard, "measure", lambda *_: pytest.fail("measured again"))
    run(monkeypatch, folder)
    assert page.read_text() == text
    monkeypatch.setattr(leaderboard, "measure", lambda *_: ({"psnr": 1.0}, "shapes"))
    run(monkeypatch, folder, "data.val_size=6")
    assert page.read_text().count("| 1.00 ") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.quantizer.l2_norm=true"], "model.quantizer.l2_norm: the models are as they are; keys may begin with"),
        (["data.image_size=64"], "data.image_size: is each model's own"),
        (["--image-size", "0"], "--image-size 0 must be at least 1"),
        (["model.metrics.extractor=resnet"], "extractor='resnet' is none of"),
        (["runtime.accelerator=abacus"], "runtime.accelerator='abacus' is none of"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, folder, *arguments)
    assert message in capsys.readouterr().err


def test_keys_say_where_as_options_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """~ in both of them, and CIFAR-10 is looked for where it is said to be."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for split in ("train", "test"):
        (tmp_path / "images/cifar10" / split).mkdir(parents=True)
    keys = ["runtime.output_dir=~/other", "runtime.data_dir=~/images"]
    monkeypatch.setattr(sys, "argv", ["leaderboard", str(folder), *keys, "--print-config"])
    experiments.leaderboard.main()
    assert "name: cifar10" in capsys.readouterr().out
    run(monkeypatch, folder, "runtime.output_dir=~/other")
    assert list((tmp_path / "other/leaderboard").glob("shapes*.md")) and not (tmp_path / "runs").exists()


def test_folders_with_nothing_to_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for make, message in [
        (lambda: None, "none: no such folder; CHECKPOINTS names one"),
        (lambda: (tmp_path / "none").mkdir(), "none: holds no checkpoint (.ckpt, .pt,"),
        (lambda: (tmp_path / "none/a.pt").write_bytes(b"x"), "none: nothing could be measured"),
    ]:
        make()
        with pytest.raises(SystemExit):
            run(monkeypatch, tmp_path / "none")
        assert message in capsys.readouterr().err
