"""A finished sweep ends, and a table is rendered, without torch; and no plan outlives what it was made of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sweeps.run as run_module
from experiments.runtime.records import record_path, write_json
from sweeps import grid as grid_module
from sweeps.grid import SWEEPS, Grid, load_grid
from sweeps.plan import PlanFile, Planned, full, state_of, table_grids

SWEEP = SWEEPS / "vqgan_lc" / "table7.yaml"
ROOT = SWEEPS.parent
COMMAND = """
import sys
from sweeps import run, table
words = sys.argv[1:]
status = table.main(words) if "--out" in words else run.main([*words, "--workers", "4", "--storage", "journal"])
heavy = {"torch", "lightning", "torchvision", "optuna", "timm"} & sys.modules.keys()
sys.exit(f"imported: {heavy}" if heavy else status)
"""


def finish(grid: Grid, output_dir: Path) -> None:
    """Writes a record for each cell of the grid, as if it had been trained on shapes."""
    for run in grid.runs:
        record = {"format": 1, "digest": run.digest, "data_id": "shapes", "config": run.experiment.identity()}
        metrics = {"usage/epoch": 50.0, "rfid": 3.5}
        record |= {"metrics": metrics, "protocols": dict.fromkeys(metrics, "p"), "environment": {}}
        write_json(record_path(output_dir / "records", run.experiment, "shapes"), record)


def test_a_finished_sweep_needs_no_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it was read; neither do its tables, whose plans the same reading leaves."""
    words = [str(SWEEP), "--scale", "reduced", "--data", "shapes", "--output-dir", str(tmp_path)]
    options = run_module.build_parser().parse_intermixed_args(words)
    sweep = run_module.open_sweep(options)
    finish(sweep.grid, tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for extra in ([], ["--out", str(tmp_path / "tables")]):
        command = [sys.executable, "-c", COMMAND, *words, *extra]
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        assert ("rFID" in result.stdout) if extra else (f"0 of {len(sweep.runs)} cells to train" in result.stdout)
    assert not (tmp_path / "sweeps" / "locks").exists(), "nothing is left to queue"
    assert list((tmp_path / "tables").glob("*.png"))


def test_what_was_planned_is_what_is_read(tmp_path: Path) -> None:
    """To the last key, also of a model on top of another."""
    for file in (SWEEP, SWEEPS / "vit_vqgan" / "table7.yaml"):
        grid = load_grid(file, "quick", "0,1", ["trainer.max_steps=7"])
        plan = PlanFile(tmp_path, file, "quick", {"seeds": "0,1"})
        plan.write(grid, {"a": "b"}, "state")
        kept = plan.read("state")
        assert kept is not None and kept[1] == {"a": "b"} and plan.read("other state") is None
        assert kept[0].tables and [t.spec for t in kept[0].tables] == [t.spec for t in grid.tables]
        for ours, theirs in zip(kept[0].tables, grid.tables, strict=True):
            assert [(r.heads, r.paper, r.rule, r.use) for r in ours.rows] == [
                (r.heads, r.paper, r.rule, r.use) for r in theirs.rows
            ]
        assert (kept[0].name, kept[0].seeds, kept[0].objective) == (grid.name, grid.seeds, grid.objective)
        assert kept[0].maximize == grid.maximize == (file.stem == "table7" and file.parent.name == "vit_vqgan")
        for a, b in zip(kept[0].runs, grid.runs, strict=True):
            assert isinstance(a.experiment, Planned) and (a.name, a.label, a.digest) == (b.name, b.label, b.digest)
            assert a.experiment.identity() == b.experiment.identity() and a.experiment.data.train_size
            assert full(a) == b.experiment


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlanFile:
    (tmp_path / "vqgan_cifar10.yaml").write_text("model:\n  name: vqgan\ndata:\n  name: shapes\n")
    (tmp_path / "sweep.yaml").write_text(
        "title: A test\n"
        "tables:\n"
        "  - {id: one, title: t, paper: p, row_heads: [K], columns: [{metric: rfid, head: r}],\n"
        "     cells: [{experiment: vqgan, row: {K: 16}, set: {model.codebook_size: 16}}]}\n"
    )
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    plan = PlanFile(tmp_path / "runs", tmp_path / "sweep.yaml", "quick", {})
    plan.write(load_grid(tmp_path / "sweep.yaml", "quick"))
    assert plan.read() is not None
    return plan


@pytest.mark.parametrize("name", ["sweep.yaml", "vqgan_cifar10.yaml"])
def test_a_changed_source_is_read_again(planned: PlanFile, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text((tmp_path / name).read_text() + "# other\n")
    assert planned.read() is None


def test_a_changed_program_is_read_again(planned: PlanFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    (root / "lightning_modules").mkdir(parents=True)
    (root / "lightning_modules" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr("sweeps.plan.ROOT", root)
    assert planned.read() is None
    planned.write(load_grid(tmp_path / "sweep.yaml", "quick"))
    assert planned.read() is not None
    (root / "lightning_modules" / "a.py").write_text("a = 2\n")
    assert planned.read() is None


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"sources": 1}'])
def test_a_damaged_plan_is_made_again(planned: PlanFile, damage: str) -> None:
    planned.path.write_text(damage)
    assert planned.read() is None


def test_a_plan_of_other_words_is_another(planned: PlanFile, tmp_path: Path) -> None:
    assert PlanFile(tmp_path / "runs", tmp_path / "sweep.yaml", "quick", {"seeds": "3"}).read() is None
    assert PlanFile(tmp_path / "runs", tmp_path / "sweep.yaml", "reduced", {}).read() is None


def test_data_that_comes_or_goes_changes_the_state(tmp_path: Path) -> None:
    states = [state_of(tmp_path / "data")]
    for split in ("train", "test"):
        (tmp_path / "data" / "cifar10" / split).mkdir(parents=True)
        states.append(state_of(tmp_path / "data"))
    (tmp_path / "other").symlink_to(tmp_path / "data")
    assert state_of(tmp_path / "other") == states[-1]
    states.append(state_of(tmp_path / "elsewhere"))
    assert len(set(states)) == len(states)


def test_a_stand_in_for_the_data_is_not_remembered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Next time the real data may be there; the rendered shapes themselves are."""
    words = ["--scale", "quick", "--data-dir", str(tmp_path), "--output-dir", str(tmp_path / "runs")]
    arguments = [str(SWEEP), *words, "data.download=false"]
    for data, is_kept in (("auto", False), ("shapes", True)):
        options = run_module.build_parser().parse_intermixed_args([*arguments, "--data", data])
        sweep = run_module.open_sweep(options)
        assert set(sweep.data_ids.values()) == {"shapes"}
        assert (run_module.plan_file(options, data).read(state_of(tmp_path)) is not None) == is_kept
    assert "NO CIFAR-10" in capsys.readouterr().out


def test_tables_of_a_plan_look_for_the_same_records(tmp_path: Path) -> None:
    read = table_grids(tmp_path, SWEEP, "quick", "", [], "auto")
    kept = table_grids(tmp_path, SWEEP, "quick", "", [], "auto")
    assert len(read) == 2 and read[0].runs[0].digest != read[1].runs[0].digest
    for a, b in zip(read, kept, strict=True):
        assert [run.digest for run in a.runs] == [run.digest for run in b.runs]
        assert isinstance(b.runs[0].experiment, Planned)
