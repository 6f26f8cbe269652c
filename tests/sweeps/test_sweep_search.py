"""A search tries values, learns from them, prunes hopeless trials, and continues where it was stopped."""

from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from shared_worker import RECIPE

from experiments.pipeline.training import train
from sweeps import grid as grid_module
from sweeps.grid import SWEEPS, scale_names
from sweeps.queue import Queue
from sweeps.search import main as search_main
from sweeps.study import Report, corner, load_search, study_name

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
    return search_main([str(path), *words, *extra])


def trials(path: Path) -> list[optuna.trial.FrozenTrial]:
    (journal,) = (path.parent / "runs" / "sweeps").glob("search_reduced_shapes_*.journal")
    study = Queue(journal.stem, "journal", path.parent / "runs", direction="maximize").study
    assert study.metric_names == ["psnr"]
    return study.get_trials()


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
    (table,) = tables.glob("search_reduced_shapes_*.md")
    rows = [line for line in table.read_text().splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[2].split("|")[1:-1]] == [
        str(best.number),
        *(f"{best.params['model.optimizer.lr']:.4g}", str(best.params["model.codebook_size"])),
        *(str(best.params["model.code_dim"]), f"{best.value:.4g}", "4"),
    ]
    for name in ("", "_slice", "_validations"):
        assert (tables / f"{table.stem}{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("old", "new", "argument", "is_same"),
    [
        ("trials: 3", "trials: 30", "", True),
        ("title: A test", "title: Other words", "", True),
        ("", "", "runtime.num_workers=1", True),
        ("metric: psnr", "metric: ssim", "", False),
        ("maximize: true", "maximize: false", "", False),
        ("high: 64", "high: 65", "", False),
        ("choices: [4, 8]", "choices: [4]", "", False),
        ("startup_trials: 2", "startup_trials: 3", "", False),
        ("trials: 3", "trials: 3\nwarmup_validations: 2", "", False),
        ("trials: 3", "trials: 3\nseed: 1", "", False),
        ("trials: 3", "trials: 3\nset: {trainer.weight_ema: 0.5}", "", False),
        ("", "", "data.train_size=12", False),
        ("", "", "seed=1", False),
    ],
)
def test_a_search_is_another_study_when_its_meaning_is_another(
    search_file: Path, old: str, new: str, argument: str, is_same: bool
) -> None:
    def name(*arguments: str) -> str:
        spec, experiment_of = load_search(search_file, "reduced", arguments)
        return study_name(spec, "search", experiment_of(corner(spec, 0)), "shapes")

    before = name()
    assert old in SEARCH
    search_file.write_text(SEARCH.replace(old, new))
    after = name(argument) if argument else name()
    assert (after == before) == is_same and before.startswith("search_shapes_")


def test_a_search_with_another_metric_begins_anew(search_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its trials are not ranked with those of the other one."""
    for metric in ("psnr", "ssim"):
        search_file.write_text(SEARCH.replace("metric: psnr", f"metric: {metric}"))
        assert command(search_file, "--trials", "1") == 0
        out = capsys.readouterr().out
        assert "1 of 1 trials to run" in out and f"highest {metric} of 1 trials" in out


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

    def is_hopeless_at(value: float, step: int) -> bool:
        trial.report(value, step)
        return trial.should_prune()

    report = Report("psnr", 4, is_hopeless_at)
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
        ("trials: 3", "trials: 3\nset: {model.code_dim: 4}", ["set, model.code_dim", "is searched"]),
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


@pytest.mark.parametrize("argument", ["model.optimizer.lr=1.0e-4", "model.codebook_size=8", "model.code_dim=8"])
def test_a_key_that_is_searched_cannot_be_fixed(search_file: Path, argument: str) -> None:
    """Also not at its lowest value, with which the search would have the name of the one without it."""
    key = argument.partition("=")[0]
    with pytest.raises(ValueError, match=rf"search\.yaml: {key} is searched, so it cannot be set as well"):
        load_search(search_file, "reduced", [argument])


def test_the_configuration_of_a_trial_can_be_printed(search_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(search_file, "--print-config") == 0
    text = capsys.readouterr().out
    assert text.startswith("# of a trial at the lower end of model.optimizer.lr, model.codebook_size, model.code_dim\n")
    values = yaml.safe_load(text)["model"]
    assert (values["optimizer"]["lr"], values["codebook_size"], values["code_dim"]) == (1e-4, 8, 4)
    assert not (search_file.parent / "runs").exists()


def test_a_number_of_trials_below_one(search_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(search_file, "--trials", "-1")
    assert capsys.readouterr().err == "error: TRIALS=-1 must be at least 1\n"


@pytest.mark.parametrize("scale", scale_names())
@pytest.mark.parametrize("path", sorted(SWEEPS.glob("search_*.yaml")), ids=lambda path: path.stem)
def test_every_search_loads_at_every_scale(path: Path, scale: str) -> None:
    spec, experiment_of = load_search(path, scale, [])
    experiment: Any = experiment_of({})
    assert 0 < experiment.trainer.validate_every < experiment.trainer.max_steps
    assert spec.warmup_validations < spec.validations
