"""The list of tables says what is missing, and what it would cost."""

from pathlib import Path

import pytest

from sweeps import measure
from sweeps.grid import load_grid
from sweeps.index import index
from sweeps.measure import cost


def test_rendered_tables_come_first_and_tables_without_a_run_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "PUBLISHED", tmp_path / "none")
    folder = tmp_path / "docs" / "tables"
    folder.mkdir(parents=True)
    (folder / "a.md").write_text("**Part**\n\n3 of 7 runs are missing, about 2.5 h on a CPU; their cells are empty.\n")
    (folder / "b.md").write_text("**Other**\n\n1 of 3 runs are missing; their cells are empty.\n")
    (folder / "vqgan_lc_table6_cifar_images.md").write_text("**Whole**\n")
    lines = index(tmp_path).splitlines()
    assert lines[2:5] == [
        "| Part | [a](tables/a.md) | 3 of 7, about 2.5 h on a CPU |",
        "| Other | [b](tables/b.md) | 1 of 3 |",
        "| Whole | [vqgan_lc_table6_cifar_images](tables/vqgan_lc_table6_cifar_images.md) | none |",
    ]
    table7 = load_grid("vqgan_lc/table7", "reduced")
    num_runs = len(table7.runs)
    assert num_runs > 1
    link = "[sweeps/vqgan_lc/table7.yaml](../sweeps/vqgan_lc/table7.yaml)"
    assert f"| {table7.tables[0].spec.title} | {link}, no run | all {num_runs} of `reduced` |" in lines
    whole = load_grid("vqgan_lc/table6", "reduced").tables[0].spec
    assert not any(whole.title in line for line in lines)


def test_the_cost_is_the_median_of_each_recipe_on_cpus() -> None:
    runs = load_grid("vqgan_lc/table7", "reduced", "0,").runs[:2]
    assert {run.name for run in runs} == {"vqgan_lc_cifar10"}

    def record(seconds: float, name: str = runs[0].name, device: str = "cpu") -> dict:
        return {"name": name, "device": device, "wall_seconds": seconds}

    records = [record(3600), record(7200), record(36000), record(9, device="cuda:0"), record(0)]
    assert cost(runs, records) == ", about 4 h on a CPU"
    assert cost(runs, [record(1800, "another")]) == ", about 1 h on a CPU"
    assert cost(runs, [record(9, device="cuda:0")]) == ""
