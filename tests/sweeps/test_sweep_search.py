"""A search tries values, learns from them, ends what is hopeless, and goes on where it was stopped."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from shared_worker import RECIPE

import sweeps.search as search_module
from experiments.pipeline.training import train
from sweeps import grid as grid_module
from sweeps.grid import SWEEPS, scale_names
from sweeps.pruning import Report
from sweeps.search import load_search
from sweeps.study import Queue

SEARCH = """
title: A test
experiment: vqgan
metric: psnr
maximize: true
trials: 3
startup_trials: 2
validations: 2
space:
  model.optimizer.lr: {low: 1.0e-4, high: 1.0e-1, log: true}
  model.codebook_size: {low: 8, high: 64, integer: true}
  model.code_dim: {choices: [4, 8]}
"""


@pytest.fixture
def search_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_encoders: None) -> Path:
    (tmp_path / "vqgan_cifar10.yaml").write_text(RECIPE.replace("max_steps: 6", "max_steps: 4"))
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    path = tmp_path / "search.yaml"
    path.write_text(SEARCH)
    return path


def command(path: Path, *extra: str) -> int:
    words = ["--scale", "reduced", "--data", "shapes", "--output-dir", str(path.parent / "runs")]
    return search_module.main([str(path), *words, *extra])


def trials(path: Path) -> list[optuna.trial.FrozenTrial]:
    return Queue("search_reduced_shapes", "journal", path.parent / "runs", direction="maximize").study.get_trials()


def test_a_search_goes_on_from_what_it_knows(search_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(search_file) == 0
    first = trials(search_file)
    assert len(first) == 3 and "3 of 3 trials to run" in capsys.readouterr().out
    for trial in first:
        params = trial.params
        assert 1e-4 <= params["model.optimizer.lr"] <= 1e-1 and 8 <= params["model.codebook_size"] <= 64
        assert list(trial.intermediate_values) in ([2, 4], [2])  # psnr of each validation, by step
    assert len({trial.params["model.optimizer.lr"] for trial in first}) == 3, "each trial draws its own numbers"

    assert command(search_file, "--trials", "4") == 0
    second, out = trials(search_file), capsys.readouterr().out
    assert "1 of 4 trials to run" in out and [t.params for t in second[:3]] == [t.params for t in first]
    assert len(second) == 4
    assert command(search_file, "--trials", "4") == 0
    assert "0 of 4 trials to run" in capsys.readouterr().out and len(trials(search_file)) == 4

    best = max((t for t in second if t.state.name == "COMPLETE"), key=lambda trial: trial.value or 0.0)
    tables = search_file.parent / "runs" / "tables"
    rows = [line for line in (tables / "search_reduced_shapes.md").read_text().splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == [
        str(best.number),
        *(f"{best.params['model.optimizer.lr']:.4g}", str(best.params["model.codebook_size"])),
        *(str(best.params["model.code_dim"]), f"{best.value:.4g}", "4"),
    ]
    for name in ("", "_slice", "_validations"):
        assert (tables / f"search_reduced_shapes{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_value_is_the_records(search_file: Path) -> None:
    """The trial's number is that of the finished model's evaluation, and the trial names its run."""
    assert command(search_file, "--trials", "1") == 0
    (trial,) = trials(search_file)
    folder = search_file.parent / "runs"
    assert (folder / "experiments" / trial.user_attrs["run"] / "checkpoints" / "final.ckpt").is_file()
    (record,) = (folder / "records").iterdir()
    assert trial.value == trial.user_attrs["psnr"] and f"{trial.value}" in record.read_text()


@pytest.mark.parametrize("is_hopeless", [False, True])
def test_a_run_that_is_worse_than_the_median_is_ended(search_file: Path, is_hopeless: bool) -> None:
    words = ["data.name=shapes", f"runtime.output_dir={search_file.parent}/runs"]
    _, experiment_of = load_search(search_file, "reduced", words)
    experiment = experiment_of({"model.optimizer.lr": 1e-3})
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(1, 0))
    others = {2: 1e6 if is_hopeless else -1e6, 4: 1e6}  # worse at the last step does not count
    study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=others))
    trial = study.ask()
    report = Report(trial, "psnr", 4, lambda action: action())
    if is_hopeless:
        with pytest.raises(optuna.TrialPruned, match=r"psnr .* at step 2 is worse than the median"):
            train(experiment, "vqgan", search_file.parent / "run", callbacks=[report])
    else:
        record = train(experiment, "vqgan", search_file.parent / "run", callbacks=[report])
        assert list(study.trials[1].intermediate_values) == [2, 4]
        assert record["metrics"]["psnr"] == study.trials[1].intermediate_values[4]


def test_a_metric_that_is_not_measured_is_named(search_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search_file.write_text(SEARCH.replace("metric: psnr", "metric: pnsr"))
    assert command(search_file, "--trials", "1") == 1
    out = capsys.readouterr().out
    assert "metric=pnsr is none of the validation's: " in out and "psnr" in out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("model.optimizer.lr:", "model.optimizer.lrr:", ["model.optimizer.lrr", "'model.optimizer.lr'"]),
        ("{low: 8, high: 64, integer: true}", "{low: 64, high: 8}", ["model.codebook_size", "`low` below `high`"]),
        ("low: 1.0e-4", "low: 0.0", ["model.optimizer.lr", "above 0 with `log`"]),
        ("{choices: [4, 8]}", "{choices: [4, 8], low: 4, high: 8}", ["model.code_dim", "`choices`, or"]),
        ("{choices: [4, 8]}", "{}", ["model.code_dim", "`choices`, or"]),
        ("choices: [4, 8]", "choice: [4, 8]", ["unknown key", "'choices'"]),
        ("choices: [4, 8]", "choices: [4, 0]", ["code_dim=0"]),
        ("validations: 2", "validations: 0", ["validations=0"]),
        ("experiment: vqgan", "experiment: vqgann", ["vqgann_cifar10.yaml", "did you mean"]),
    ],
)
def test_mistakes_are_named_before_any_work(search_file: Path, old: str, new: str, words: list[str]) -> None:
    assert old in SEARCH
    search_file.write_text(SEARCH.replace(old, new))
    with pytest.raises(ValueError) as error:
        load_search(search_file, "reduced", [])
    for word in ["search.yaml", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("scale", scale_names())
@pytest.mark.parametrize("path", sorted(SWEEPS.glob("search_*.yaml")), ids=lambda path: path.stem)
def test_every_search_loads_at_every_scale(path: Path, scale: str) -> None:
    spec, experiment_of = load_search(path, scale, [])
    experiment: Any = experiment_of({})
    assert 0 < experiment.trainer.validate_every < experiment.trainer.max_steps
    assert spec.warmup_validations < spec.validations
