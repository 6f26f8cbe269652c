"""Two real runs of 20 steps: listed, and beside each other on a page."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ENCODER_USERS, load_once, tiny_experiment
from PIL import Image

import experiments.compare
import experiments.runs
from experiments.pipeline.comparison import page_title
from experiments.pipeline.run_folders import read_run, unlike_most
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.files import LOCK, is_locked, locked

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """VQ and FC with l2-norm, finished; a third that was stopped."""
    out, made = tmp_path_factory.mktemp("out"), []
    steps = ["trainer.max_steps=20", "trainer.validate_every=10", "data.val_size=16"]
    with pytest.MonkeyPatch.context() as patch:
        for user in ENCODER_USERS:
            patch.setattr(user, "load_encoder", load_once)
        for name, *options in (("vqgan", "seed=1"), ("vqgan_fc", "model.quantizer.l2_norm=true"), ("vqgan_ema",)):
            experiment = tiny_experiment(out, name, *steps, *options)
            train(experiment, name, folder := run_dir(experiment, name))
            made.append(folder)
    (record,) = (out / "runs/records").glob(f"{experiment.digest()}*")
    record.unlink()
    (made[2] / "checkpoints/final.ckpt").rename(made[2] / "checkpoints/last.ckpt")
    return made


def listed(folders: list[Path], monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["runs", str(folders[0].parents[1]), *words])
    experiments.runs.main()


def test_runs_are_listed_by_a_metric(
    folders: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    psnr = [run.metric("psnr") for run in map(read_run, folders)]
    assert psnr[0] and psnr[1] and psnr[2] is None
    listed(folders, monkeypatch, "--sort", "psnr", "--reverse", "--metrics", "usage/val")
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["run", "state", "psnr", "[1]", "usage/val", "[2]"]
    best = int(psnr[1][0] > psnr[0][0])
    assert [line.split()[0] for line in lines[:3]] == [folders[i].name for i in (best, 1 - best, 2)]
    assert [line.split()[1] for line in lines[:3]] == ["finished", "finished", "stopped"]
    assert f"{max(psnr[0][0], psnr[1][0]):.4g}" in lines[0]
    assert lines[3:] == ["[1] psnr/rgb-range1-per-image/n16", "[2] usage/once-in-val/n16"]
    assert "quantizer.name=factorized" in unlike_most([read_run(folder) for folder in folders])[1]


def test_what_cannot_be_listed_is_said(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        listed(folders, monkeypatch, "--sort", "pnsr")
    assert "--sort pnsr: no run has it; there are dead_codes/epoch" in capsys.readouterr().err
    (broken := tmp_path / "experiments/x").mkdir(parents=True)
    (broken / "config.yaml").write_text("model: {name: vqgan, codebook: 3}\n")
    with pytest.raises(SystemExit):
        listed([broken], monkeypatch)
    errors = capsys.readouterr().err
    assert f"left out: {broken}/config.yaml: unknown key 'model.codebook'" in errors and "holds no run" in errors


def test_a_lock_is_seen_and_kept(tmp_path: Path) -> None:
    looks = "import sys, pathlib, experiments.runtime.files as files; print(files.is_locked(pathlib.Path(sys.argv[1])))"
    command = [sys.executable, "-c", looks, str(tmp_path / LOCK)]
    assert not is_locked(tmp_path / LOCK)
    with locked(tmp_path / LOCK, "is training there"):
        assert subprocess.run(command, capture_output=True, text=True, cwd=PROJECT).stdout == "True\n"
    assert not is_locked(tmp_path / LOCK)


def page(folders: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    for end in (["--dry-run"], []):
        assert not out.is_file()
        monkeypatch.setattr(sys, "argv", ["compare", *map(str, folders), "--out", str(out), *words, *end])
        experiments.compare.main()
    return out.read_text()


def test_the_page(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page(folders, tmp_path / "new" / "page.html", monkeypatch)
    monkeypatch.chdir(folders[0].parent)
    assert page_title([read_run(folder.name) for folder in folders]) == f"3 runs of {folders[0].parents[1].name}"
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<link', text), "nothing is loaded"
    heads = re.findall("<h2>(.*?)</h2>", text)
    assert heads == ["Runs", "Configuration", "Metrics", "The same images", "Curves", "Use of the codes in validation"]
    rows = [re.findall(r"<td[^>]*>\s*(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)]
    record = read_run(folders[0]).record
    assert record
    (psnr,) = (row for row in rows if row and row[0] == "psnr")
    assert psnr[1] == record["protocols"]["psnr"] and psnr[2] == f"{record['metrics']['psnr']:.4g}" and psnr[4] == ""
    assert ["seed", "1", "0", "0"] in rows
    images = re.findall('src="data:image/png;base64,(.*?)"', text)
    assert len(images) == 8 * 4, "originals and three runs, also of the weights of one that was stopped"
    assert base64.b64decode(images[0])[:4] == b"\x89PNG"
    curves = [base64.b64decode(one).decode() for one in re.findall('src="data:image/svg.xml;base64,(.*?)"', text)]
    assert any("val/psnr" in one for one in curves) and sum("uses of a code" in one for one in curves) == 3


def test_images_of_ones_own(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a & b.png")
    text = page(folders[:2], tmp_path / "page.html", monkeypatch, "--images", str(tmp_path / "a & b.png"))
    assert len(re.findall('src="data:image/png', text)) == 3


def test_what_cannot_be_compared_is_one_error(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        ([tmp_path / "none"], "none: no such folder; name a run's, OUT/experiments/RUN"),
        ([tmp_path], "neither a run's folder with a checkpoint nor an exported model"),
    ):
        with pytest.raises(SystemExit):
            page(words, tmp_path / "page.html", monkeypatch)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        page(folders, tmp_path, monkeypatch)
    assert "is a folder; name the page to write" in capsys.readouterr().err
