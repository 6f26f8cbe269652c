"""Strips of generated images: of every trained VIM of a sweep, nothing selected, and nothing trained for them."""

from pathlib import Path

import lightning as L
import numpy as np
import pytest
from conftest import TinyExperiment
from vim_cases import tiny_vim

from experiments.build import restore
from experiments.chain import lend, run_dir
from experiments.runtime.callbacks import sample_grid
from experiments.schema import Downstream, Experiment
from experiments.train import train
from sweeps import samples
from sweeps.grid import Grid, Row, Run, Table
from sweeps.schema import TableSpec

NO_IMAGES = "model.generation.num_samples=0"


def grid_of(*experiments: Experiment) -> Grid:
    runs = [
        Run("vim", f"row {number}", experiment, experiment.digest()) for number, experiment in enumerate(experiments)
    ]
    table = Table(TableSpec(), tuple(Row({}, {}, (run,)) for run in runs))
    return Grid(Path("x.yaml"), "x", "X", "", "quick", (0,), (table,))


def test_each_trained_vim_has_a_strip(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, missing = tiny_vim(tiny, NO_IMAGES), tiny_vim(tiny, NO_IMAGES, "seed=1")
    folder = run_dir(trained, "vim")
    train(trained, "vim", folder)
    monkeypatch.setattr(L.Trainer, "fit", lambda *_: pytest.fail("a picture trains nothing"))

    figure = samples.draw(grid_of(trained, missing, tiny("vqgan")), 20)
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title() == "row 0"
    experiment, module = restore(folder / "checkpoints" / "final.ckpt", {"runtime": vars(trained.runtime)})
    assert isinstance(experiment, Downstream)
    lend(experiment, module, train)
    expected = sample_grid(module.eval(), 20).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(axes.images[0].get_array(), expected)
    assert expected.shape == (2 * (16 + 2) + 2, 10 * (16 + 2) + 2, 3)  # a class a column


def test_without_a_trained_vim_there_is_no_picture(tiny: TinyExperiment) -> None:
    assert samples.draw(grid_of(tiny_vim(tiny), tiny("vqgan")), 20) is None


def test_the_command_says_what_to_run_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = "sweeps/vit_vqgan/table6.yaml"
    where = ["--output-dir", str(tmp_path), "--data", "shapes"]
    with pytest.raises(SystemExit) as stopped:
        samples.main([sweep, *where])
    assert stopped.value.code and f"run `python -m sweeps.run {sweep}" in capsys.readouterr().err
