"""Several sweeps and seeds in one command: what comes first, which cells are taken, and what a budget leaves."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from small_sweep import sweep_of

import sweeps.sweep as sweep_module
from experiments.config.experiment import Experiment
from experiments.runtime.files import write_json
from experiments.runtime.records import Record, record_path
from sweeps import grid as grid_module
from sweeps import queue as queue_module
from sweeps.grid import load_grid
from sweeps.run import main as run_main
from sweeps.workers import Budget

Command = Callable[..., int]


class Trained(list[tuple[int, int]]):
    """Stands in for `train`: notes codebook size and seed, and writes a record."""

    seconds = 0.0

    def __call__(self, experiment: Experiment, name: str, run_dir: Path) -> Record:
        time.sleep(self.seconds)
        size = experiment.model.codebook_size  # type: ignore[attr-defined]
        self.append((size, experiment.seed))
        record = {"format": 1, "name": name, "config": experiment.identity(), "data_id": "shapes"}
        record |= {"metrics": {"rfid": 1.0}, "protocols": {"rfid": "p"}}
        write_json(record_path(Path(experiment.runtime.output_dir) / "records", experiment, "shapes"), record)
        return record


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    (tmp_path / "vqgan_cifar10.yaml").write_text("model:\n  name: vqgan\ndata:\n  name: shapes\n")
    (tmp_path / "a.yaml").write_text(sweep_of(16, 32))
    (tmp_path / "b.yaml").write_text(sweep_of(16, 64).replace("one", "two"))  # shares its first cell with a
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    monkeypatch.setattr(sweep_module, "train", trained := Trained())
    monkeypatch.setattr(queue_module, "POLL_SECONDS", 0.05)
    return trained


@pytest.fixture
def command(tmp_path: Path, trained: Trained) -> Command:
    files = [str(tmp_path / name) for name in ("b.yaml", "a.yaml")]
    return lambda *words: run_main([*files, "--output-dir", str(tmp_path / "runs"), *words])


def test_all_cells_of_a_seed_come_before_the_next_seed(trained: Trained, command: Command, tmp_path: Path) -> None:
    """The sweeps in their order, a cell that both have once."""
    assert command("--seeds", "2") == 0
    assert trained == [(16, 0), (64, 0), (32, 0), (16, 1), (64, 1), (32, 1)]
    tables = [path.name for path in sorted((tmp_path / "runs" / "tables").glob("*.md"))]
    assert tables == ["a_quick_shapes.md", "b_quick_shapes.md"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [(["*2"], [(32, 0)]), (["two/*"], [(16, 0), (64, 0)]), (["64", "one/16"], [(64, 0), (16, 0)])],
)
def test_only_some_cells(trained: Trained, command: Command, patterns: list[str], expected: list[tuple]) -> None:
    assert command(*(word for pattern in patterns for word in ("--only", pattern))) == 0
    assert trained == expected


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("generator=LDM tokenizer=VQGAN-LC", ["LC 16,384", "LC 100,000"]),
        ("K=100000 generator=L*", ["LC 100,000"]),
        ("generator=LDM K=16,384", ["FC 16,384", "EMA 16,384", "LC 16,384"]),
        ("table4/LDM *LC*", ["LC 16,384", "LC 100,000"]),
        ("LDM tokenizer=VQGAN-LC", []),  # a label is given whole
        ("generator=LDM quantizer=LC", []),
        ("generator=LDM K=", []),
        ("", []),
    ],
)
def test_rows_by_some_of_their_heads(pattern: str, expected: list[str]) -> None:
    rows = [name.split() for name in expected]
    labels = [f"LDM tokenizer=VQGAN-{tokenizer} tokens=256 K={size}" for tokenizer, size in rows]
    assert [run.label for run in load_grid("vqgan_lc/table4", "reduced", "0,").chosen([pattern])] == labels


def test_a_pattern_without_a_cell_is_an_error(
    trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("--only", "K=17")
    assert "--only 'K=17': no row matches; for example 'two/16'" in capsys.readouterr().err and not trained


def test_nothing_begins_that_would_pass_the_budget(
    trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.seconds = 1.0
    assert command("--seeds", "2", "--minutes", str(3.5 / 60)) == 0
    assert 1 <= len(trained) <= 3
    out = capsys.readouterr().out
    assert "left, the time is up" in out and "the same command tries the others again" in out
    trained.seconds = 0.0
    assert command("--seeds", "2") == 0 and len(trained) == 6


def test_what_runs_at_the_end_of_the_budget_is_stopped_and_put_back(
    trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.seconds = 60.0
    start = time.time()
    assert command("--minutes", str(1 / 60)) == 0
    assert time.time() - start < 20 and not trained
    assert capsys.readouterr().out.count("left, the time is up") == 4
    trained.seconds = 0.0
    assert command() == 0 and len(trained) == 3


def test_a_budget_expects_the_median_of_the_same_experiment() -> None:
    budget = Budget(1)
    others = [("other", 1000.0)]
    assert budget.fits("own", []) and not budget.fits("own", others)
    assert budget.fits("own", [*others, ("own", 10.0), ("own", 20.0), ("own", 500.0)])
    assert Budget(0).fits("own", others) and Budget(1, budget.until).begun == budget.begun


def test_a_bad_budget_is_named(trained: Trained, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("--minutes", "-1")
    assert "--minutes -1.0: must be" in capsys.readouterr().err


def test_a_head_outside_the_quotes_is_an_error(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command("--only", "K=16", "K=32")
    assert "'K=32': a head of rows, no key of experiments; rows by several heads: --only" in capsys.readouterr().err
