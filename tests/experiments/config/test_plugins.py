"""The module of docs/plugins.md, through the commands: it trains, is measured, restored and part of the identity."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment

from datamodules import DATAMODULES
from experiments import evaluate, export, train
from experiments.config import plugins
from experiments.config.compose import load_experiment, parse
from experiments.config.values import merge
from experiments.runtime.files import write_json
from lightning_modules import Tokenizer
from lightning_modules.quantizers import QUANTIZERS
from sweeps import grid
from sweeps import run as sweeps_run

PAGE = Path(__file__).parents[3] / "docs/plugins.md"
NAME = "my_module"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working folder, with the page's module; afterwards nobody knows it any more."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / f"{NAME}.py").write_text(code)
    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "images.npz", train=images, val=images[:6])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(plugins, "imported", [])
    yield tmp_path
    forget()


def forget() -> None:
    for table, key in (QUANTIZERS, "bsq"), (DATAMODULES, "arrays"):
        table.pop(key, None)  # type: ignore[attr-defined]
    sys.modules.pop(NAME, None)
    importlib.invalidate_caches()


@pytest.fixture
def recipe(folder: Path, tiny: TinyExperiment) -> Path:
    experiment = tiny()
    values: dict[str, Any] = experiment.identity() | {"runtime": vars(experiment.runtime)}
    values["model"].pop("quantizer")
    values["data"] = {"name": "arrays", "image_size": 16, "batch_size": 4}
    values = merge(values, {"model": {"quantizer": {"name": "bsq"}, "codebook_size": 256}})
    write_json(folder / "mine.yaml", values)
    return folder / "mine.yaml"


def call(monkeypatch: pytest.MonkeyPatch, main: Any, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["command", *words])
    main()


def test_it_works_in_every_command_and_edits_of_it_make_other_runs(
    recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, train.main, "--import", NAME, str(recipe), "--data-dir", str(folder))
    (run,) = (folder / "runs/experiments").iterdir()
    (record,) = (json.loads(path.read_text()) for path in (folder / "runs/records").iterdir())
    assert re.fullmatch(rf"{NAME}@[0-9a-f]{{8}}", record["config"]["plugins"]) and "arrays-" in record["data_id"]

    assert load_experiment(recipe, [f"plugins={NAME}@00000000"]).plugins == record["config"]["plugins"]

    tokenizer = Tokenizer.from_pretrained(run)
    codes = tokenizer.encode(torch.rand(2, 3, 16, 16) * 2 - 1)
    assert torch.equal(tokenizer.decode_indices(codes.indices), tokenizer.decode(codes.quantized))
    tokenizer.save_pretrained(folder / "exported")

    forget()
    for path in (run, folder / "exported"):
        with pytest.raises(ValueError, match=rf"first import what it is made of .*: {NAME}@"):
            Tokenizer.from_pretrained(path)
    with pytest.raises(SystemExit):
        call(monkeypatch, export.main, str(run), "--out", str(folder / "again"))
    assert re.search(rf"{NAME}@", capsys.readouterr().err)
    with pytest.raises(ValueError, match=rf"'arrays' is none of .*; it may be of {NAME}@.*, which --import"):
        parse(record["config"], "x")
    with pytest.raises(SystemExit):
        call(monkeypatch, train.main, "--import", "my_modul", str(recipe))
    assert "no module 'my_modul' is installed or in the working folder" in capsys.readouterr().err

    call(monkeypatch, evaluate.main, str(run), f"--import={NAME}", f"--data-dir={folder}", "--json")
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["metrics"]["psnr"] == record["metrics"]["psnr"]

    digests = [parse(record["config"], "x").digest()]
    for text in ("", "# edited\n"):
        with (folder / f"{NAME}.py").open("a") as file:
            file.write(text)
        forget()
        plugins.load(NAME)
        digests.append(parse({key: value for key, value in record["config"].items() if key != "plugins"}, "x").digest())
    assert digests[0] == digests[1] != digests[2]


def test_it_is_a_cell_of_a_sweep(
    recipe: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(grid, "EXPERIMENTS", folder)
    recipe.rename(folder / "mine_cifar10.yaml")
    (folder / "sweep.yaml").write_text(
        'title: A test\nobjective: psnr\ntables:\n- {id: one, title: Mine, paper: "a paper", row_heads: [quantizer], '
        "columns: [{metric: psnr, head: PSNR}], cells: [{experiment: mine, row: {quantizer: BSQ}}]}\n"
    )
    small = ["data.train_size=null", "data.val_size=null", "data.batch_size=4", "trainer.max_steps=2"]
    words = ["--output-dir", str(folder / "out"), "--data-dir", str(folder), *small]
    assert sweeps_run.main([str(folder / "sweep.yaml"), "--import", NAME, "--seeds", "0", *words]) == 0
    assert "1 of 1 cells finished" in capsys.readouterr().out
