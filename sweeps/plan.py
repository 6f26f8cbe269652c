"""What a sweep comes to, kept from the last time that it was read: its cells, their configurations and digests.

To read a sweep takes the classes that it configures, and so torch and Lightning, ten seconds of imports. The answer
changes only with the sources, so it is kept in OUT/sweeps/plans together with a digest of them: a finished sweep ends,
and a table is rendered, without either import. A plan that is missing, of other sources or damaged is made anew.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from experiments.runtime.records import write_json
from sweeps import grid as grid_module
from sweeps.grid import Grid, Row, Run, Table, load_grid, sweep_name
from sweeps.schema import CellSpec, ColumnSpec, PlotSpec, TableSpec

if TYPE_CHECKING:
    from experiments.config.experiment import Experiment

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lightning_modules", "datamodules", "experiments", "sweeps")


@dataclass(frozen=True)
class Planned:
    """Stands in for an `Experiment` wherever a record is looked up or a caption written; `load` makes the real one."""

    key: str
    config: dict[str, Any]  # Experiment.identity()
    runtime: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        return self.config

    def digest(self) -> str:
        return self.key

    def differences(self, config: dict[str, Any]) -> list[str]:
        return [] if config == self.config else ["config"]

    @property
    def data(self) -> SimpleNamespace:
        return SimpleNamespace(**self.config["data"])

    def load(self) -> "Experiment":
        from experiments.config.compose import parse

        return parse(self.config | {"runtime": self.runtime}, f"the plan of {self.key}")


def full(run: Run) -> "Experiment":
    """The run's experiment as training needs it."""
    experiment: Any = run.experiment
    return experiment.load() if isinstance(experiment, Planned) else experiment


class PlanFile:
    """The plan of one sweep at one scale; `question` holds all else that decides it, such as overrides and data set."""

    def __init__(self, output_dir: Path, file: str | Path, scale: str, question: Mapping[str, Any]) -> None:
        self.file, self.scale = Path(file), scale
        asked = hashlib.sha256(json.dumps([os.fspath(file), scale, question], sort_keys=True).encode()).hexdigest()
        self.path = output_dir / "sweeps" / "plans" / f"{sweep_name(self.file)}_{scale}_{asked[:12]}.json"

    def read(self, state: object = None) -> tuple[Grid, dict[str, str]] | None:
        """The grid and the facts that were written with it, if the sources and `state` are the same as then."""
        try:
            plan = json.loads(self.path.read_text())
            if plan["sources"] != sources(self.file) or plan["state"] != state:
                return None
            return self.grid(plan), plan["facts"]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def grid(self, plan: dict[str, Any]) -> Grid:
        experiments = {key: Planned(key, kept["config"], kept["runtime"]) for key, kept in plan["experiments"].items()}

        def row(kept: dict[str, Any]) -> Row:
            runs = (Run(name, label, cast(Any, experiments[key]), key) for name, label, key in kept["runs"])
            return Row(**kept | {"runs": tuple(runs)})

        tables = tuple(Table(table_spec(kept["spec"]), tuple(map(row, kept["rows"]))) for kept in plan["tables"])
        seeds, own = tuple(plan["seeds"]), (plan["title"], plan["objective"])
        return Grid(self.file, sweep_name(self.file), *own, self.scale, seeds, tables, plan["maximize"])

    def write(self, grid: Grid, facts: dict[str, str] | None = None, state: object = None) -> None:
        """Nothing is written where the disk refuses: the next command then takes the long way again."""
        tables = [
            {
                "spec": asdict(table.spec),
                "rows": [
                    vars(row) | {"runs": [(run.name, run.label, run.digest) for run in row.runs]} for row in table.rows
                ],
            }
            for table in grid.tables
        ]
        experiments = {
            run.digest: {
                "config": run.experiment.identity(),
                "runtime": asdict(run.experiment.runtime),
            }
            for run in grid.runs
        }
        plan = {
            "sources": sources(self.file),
            "state": state,
            "facts": facts or {},
            "title": grid.title,
            "objective": grid.objective,
            "maximize": grid.maximize,
            "seeds": grid.seeds,
            "tables": tables,
            "experiments": experiments,
        }
        with suppress(OSError):
            write_json(self.path, plan)


def table_spec(kept: dict[str, Any]) -> TableSpec:
    """Of its plain values; OmegaConf, which checked them, would take a second."""
    columns, cells = [ColumnSpec(**column) for column in kept["columns"]], [CellSpec(**cell) for cell in kept["cells"]]
    return TableSpec(**kept | {"columns": columns, "cells": cells, "plot": PlotSpec(**kept["plot"])})


def table_grids(
    output_dir: Path,
    file: str | Path,
    scale: str,
    seeds: str,
    overrides: list[str],
    data: str,
    recipes: Grid | None = None,
) -> list[Grid]:
    """The grid on each data set whose records a table may show: with auto, the recipe's own and the stand-in shapes.

    `recipes`: the grid as its file has it, where that is known.
    """
    grids = []
    for word in ("recipe", "shapes") if data == "auto" else (data,):
        plan = PlanFile(output_dir, file, scale, {"seeds": seeds, "overrides": overrides, "table of": word})
        if (kept := plan.read()) is not None:
            grids.append(kept[0])
            continue
        from experiments.pipeline.build import resolve_data

        recipes = recipes or load_grid(file, scale, seeds, overrides)
        grid = recipes if word == "recipe" else recipes.prepared(partial(resolve_data, data=word))
        plan.write(grid)
        grids.append(grid)
    return grids


def sources(file: Path) -> str:
    """A digest of all code and recipes, of the sweep `file`, and of the Python that reads them."""
    paths = [path for package in PACKAGES for end in ("py", "yaml") for path in (ROOT / package).rglob(f"*.{end}")]
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for path in [*sorted({*paths, *grid_module.EXPERIMENTS.glob("*.yaml")}), file]:
        digest.update(f"{path.name} ".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def state_of(folder: str | Path) -> str:
    """A digest of the names in `folder` and its subfolders: which data sets are there, and in which form."""
    folder = Path(folder).expanduser().resolve()
    names = [str(folder)]
    if folder.is_dir():
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            names += ["", str(Path(entry.path).resolve())]
            with suppress(OSError):  # a file, or a folder of someone else
                names += sorted(os.listdir(entry.path))
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
