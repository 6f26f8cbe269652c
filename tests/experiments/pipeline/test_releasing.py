"""release: trained tokenizers as archives, from checkpoints and from kept weights."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import TinyExperiment

from experiments import release
from experiments.pipeline.releasing import Trained, write_lists
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.pipeline.weights import weights_path
from lightning_modules import Tokenizer
from lightning_modules.pretrained import load_checkpoint


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["release", *map(str, arguments)])
        release.main()


def test_checkpoints_and_kept_weights_become_the_same_archives(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny("vqgan_lc", "runtime.keep_weights=true", "model.loss.adversarial=0.1")
    out, run = Path(experiment.runtime.output_dir), run_dir(experiment, "x")
    record = train(experiment, "x", run)
    later = tiny("vqgan", "runtime.evaluate_later=true")
    train(later, "y", run_dir(later, "y"))
    trained = Tokenizer.from_pretrained(run)

    call(monkeypatch, "--output-dir", out, "--dry-run")
    listed = capsys.readouterr().out
    name = f"vqgan_lc_large_codebook_k32_s0_{experiment.digest()}"
    assert f"{name}: {run}" in listed and "not evaluated yet" in listed and not (tmp_path / "a").exists()
    call(monkeypatch, "--output-dir", out, "--out", tmp_path / "a")
    printed = capsys.readouterr().out
    assert f"left out: {weights_path(later, 'shapes')}" in printed or "not evaluated yet" in printed
    assert "gh release create v" in printed and f"{tmp_path}/a/*.zip" in printed
    assert {path.name for path in (tmp_path / "a").iterdir()} == {f"{name}.zip", "SHA256SUMS", "NOTES.md"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "a", check=True)
    notes = (tmp_path / "a/NOTES.md").read_text()
    assert f"| {record['metrics']['psnr']:.4g} |" in notes and f"] `{record['protocols']['psnr']}`" in notes

    for path in run.glob("checkpoints/*"):
        path.unlink()
    call(monkeypatch, "--output-dir", out, "--out", tmp_path / "b")
    with zipfile.ZipFile(tmp_path / f"b/{name}.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    again = Tokenizer.from_pretrained(tmp_path / "unpacked" / name)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(images).indices, trained.encode(images).indices)
    assert load_checkpoint(tmp_path / "unpacked" / name)["generator_steps"] == 3
    card = (tmp_path / "unpacked" / name / "README.md").read_text()
    assert f"| psnr | {record['metrics']['psnr']:.4g} |" in card and "shapes" in card
    assert (tmp_path / f"b/{name}.zip").read_bytes() == (tmp_path / f"a/{name}.zip").read_bytes()


def test_the_notes_tell_models_of_one_name_apart(tiny: TinyExperiment, tmp_path: Path) -> None:
    one, other = (tiny("vqgan_ema", f"model.quantizer={{init: {init}}}") for init in ("random", "latents"))
    records = [{"data_id": "shapes", "metrics": {"psnr": 20.0}, "protocols": {"psnr": f"n{n}"}} for n in (9, 10)]
    packed = {}
    for name, experiment, record in zip("abc", (one, other, one), (*records, records[0]), strict=True):
        (path := tmp_path / f"{name}.zip").touch()
        packed[path] = Trained(path, experiment, {}, record)
    write_lists(packed, tmp_path)
    rows = {line.split("`")[1]: line for line in (tmp_path / "NOTES.md").read_text().splitlines() if line[:3] == "| `"}
    assert "`quantizer.init=latents`" in rows["b"] and "quantizer" not in rows["a"] + rows["c"]
    assert "| 20 |  |" in rows["a"] and "|  | 20 |" in rows["b"], "numbers of two protocols share no column"


def test_what_cannot_be_packed_is_said(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: object) -> str:
        with pytest.raises(SystemExit):
            call(monkeypatch, *arguments)
        text = capsys.readouterr()
        return text.out + text.err

    assert "no such folder" in refused("--output-dir", tmp_path / "nowhere")
    experiment = tiny("vqgan_lc", "runtime.keep_weights=true")
    out = Path(experiment.runtime.output_dir)
    train(experiment, "x", run := run_dir(experiment, "x"))
    (run / "checkpoints/final.ckpt").write_bytes(b"cut off")
    for codebook in (out / "codebooks").glob("*.safetensors"):
        codebook.unlink()
    text = refused("--output-dir", out, "--out", tmp_path / "out")
    assert "final.ckpt: not readable as a checkpoint" in text and "its codebook is not there" in text
    assert "no trained and measured tokenizer" in text
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out/mine").touch()
    assert "is there already" in refused("--output-dir", out, "--out", tmp_path / "out")
