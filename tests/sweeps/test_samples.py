"""Strips of generated images: of every trained VIM of a sweep, nothing selected, and nothing trained for them."""

import re
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from conftest import TinyExperiment
from vim_cases import tiny_vim

from experiments.config.experiment import Experiment
from experiments.pipeline.build import restore
from experiments.pipeline.prepare import lend
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.files import write_json
from experiments.runtime.records import record_path
from lightning_modules.figures import sample_grid
from sweeps import samples
from sweeps.grid import Grid, Row, Run, Table
from sweeps.schema import CellSpec, SweepSpec, TableSpec

NO_IMAGES = "model.generation.num_samples=0"


def grid_of(*experiments: Experiment) -> Grid:
    runs = [Run("vim", f"row {number}", experiment) for number, experiment in enumerate(experiments)]
    heads = [{"model": f"GPT-{number + 1}00M", "tokens": 256} for number in range(len(runs))]
    table = Table(TableSpec(), tuple(Row(CellSpec(row=head), (run,)) for head, run in zip(heads, runs, strict=True)))
    return Grid("x", SweepSpec(), "quick", (0,), (table,))


def test_each_trained_vim_has_a_strip(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = tiny_vim(tiny, NO_IMAGES)
    folder = run_dir(trained, "vim")
    train(trained, "vim", folder)
    monkeypatch.setattr(L.Trainer, "fit", lambda *_: pytest.fail("a picture trains nothing"))

    (run,) = grid_of(trained).runs
    (axes,) = samples.draw([run], {run.digest: "row 0"}, "a title").axes
    assert axes.get_title() == "row 0"
    experiment, module = restore(folder / "checkpoints" / "final.ckpt", {"runtime": vars(trained.runtime)})
    lend(experiment, module)
    expected = sample_grid(module.eval(), 20).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert expected.shape == (2 * (16 + 2) + 2, 10 * (16 + 2) + 2, 3)  # a class a column


def test_rows_without_weights_are_named_with_the_way_to_have_them(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained, missing, published, deleted = (tiny_vim(tiny, NO_IMAGES, f"seed={seed}") for seed in range(4))
    grid = grid_of(trained, missing, published, deleted, tiny("vqgan"))
    monkeypatch.setattr(samples, "grids_of", lambda *_: [grid])
    monkeypatch.setattr(samples, "PUBLISHED", tmp_path / "published")
    own = record_path(tmp_path / "runs" / "records", deleted, "shapes")
    for path in (own, record_path(tmp_path / "published", published, "shapes")):
        write_json(path, {})
    command = ["x.yaml", "--output-dir", str(tmp_path / "runs"), "--data", "shapes"]
    with pytest.raises(SystemExit) as stopped:
        samples.main(command)
    way = "`python -m sweeps.run x.yaml --scale quick --no-published`"
    printed = capsys.readouterr()
    assert stopped.value.code == 1 and f"no trained prior at scale quick under {tmp_path}/runs" in printed.err
    assert way in printed.err and printed.out.count("left out: ") == 4

    train(trained, "vim", run_dir(trained, "vim"))
    assert samples.main([*command, "--dry-run"]) == 0 and not (tmp_path / "runs" / "tables").exists()
    assert "x_samples_quick_shapes.png, of row 0\n" in capsys.readouterr().out
    shown: list[str] = []
    draw = samples.draw
    monkeypatch.setattr(
        samples, "draw", lambda runs, labels, title: shown.append(labels[trained.digest()]) or draw(runs, labels, title)
    )
    assert samples.main(command) == 0
    assert re.fullmatch(r"GPT \d\.\dM, tokens 64", shown[0]), "what was trained, not what the paper's row is of"
    out = capsys.readouterr().out
    assert out.splitlines()[:3] == [
        "left out: row 1: not trained yet",
        "left out: row 2: its record is published, without weights",
        f"left out: row 3: its record is here and its weights are not; to train it again, delete {own}",
    ]
    assert (tmp_path / "runs" / "tables" / "x_samples_quick_shapes.png").is_file() and way in out


def test_each_recipe_has_a_picture_of_its_own(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Many strips in one picture would be too small to see."""
    grid = grid_of(*(tiny_vim(tiny, NO_IMAGES, f"seed={seed}") for seed in range(3)))
    names = iter(("vim", "sit", "vim"))
    grid = grid.changed(lambda run: replace(run, name=next(names)))
    monkeypatch.setattr(samples, "grids_of", lambda *_: [grid])
    for run in grid.runs:
        (folder := run_dir(run.experiment, run.name) / "checkpoints").mkdir(parents=True)
        (folder / "final.ckpt").touch()
    command = ["x.yaml", "--output-dir", str(tmp_path / "runs"), "--data", "shapes"]
    assert samples.main([*command, "--dry-run"]) == 0
    tables = tmp_path / "runs" / "tables"
    assert capsys.readouterr().out.splitlines() == [
        f"would be written: {tables / 'x_samples_vim_quick_shapes.png'}, of row 0, row 2",
        f"would be written: {tables / 'x_samples_sit_quick_shapes.png'}, of row 1",
    ]
