"""The tables of a sweep, from finished result records."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from experiments.pipeline.build import resolve_data
from experiments.runtime.errors import user_errors
from experiments.runtime.records import data_name
from sweeps.counted import counted
from sweeps.grid import Grid, Table, load_grid
from sweeps.measure import Finished, all_seeds, finished_by_data
from sweeps.plots import write_plot
from sweeps.render import plain, write_sheet
from sweeps.sheet import Sheet, make_sheet


class Shown(NamedTuple):
    """A table of a sweep on one data set."""

    name: str  # of its files
    sheet: Sheet
    warnings: list[str]
    table: Table
    finished: Finished
    data: str


def tables_of(grid: Grid, output_dir: Path) -> Iterator[Shown]:
    """Every table of the sweep for each data set of its records, where a cell is finished.

    Rows of different data never share a table.
    Raises ValueError for two records of one run on the same images that differ in what else it read.
    """
    if grid.spec.counted:
        firsts = [row.runs[0] for table in grid.tables for row in table.rows if row.runs]  # seeds count the same
        by_data = {"": {run.digest: counted(run.experiment) for run in firsts}}
    else:
        grid, by_data = with_finished_seeds(grid, output_dir)
        is_shared = Counter(map(data_name, by_data))  # only then a name needs its fingerprint
        by_data = {one if is_shared[name := data_name(one)] > 1 else name: by_data[one] for one in by_data}
    for data in sorted(by_data):
        for table in grid.tables:
            if any(run.digest in by_data[data] for row in table.rows for run in row.runs):
                name = grid.name_of(table) + ("" if grid.spec.counted else f"_{grid.scale}_{data}")
                yield Shown(name, *make_sheet(grid, table, by_data, data), table, by_data[data], data)


def with_finished_seeds(grid: Grid, output_dir: Path) -> tuple[Grid, dict[str, Finished]]:
    """The grid with what was trained of other seeds, where those count, and `finished_by_data`."""
    if not grid.are_seeds_open:
        return grid, finished_by_data(grid, output_dir)
    whole = grid.with_seeds(all_seeds(output_dir))
    by_data = finished_by_data(whole, output_dir)
    finished = {digest for records in by_data.values() for digest in records}
    return whole.changed(
        lambda run: run if run.experiment.seed in grid.seeds or run.digest in finished else None
    ), by_data


def render_grid(grid: Grid, output_dir: Path, out: Path) -> list[Path]:
    """Writes every table of the sweep and prints it; the paths of the files."""
    paths = []
    for shown in tables_of(grid, output_dir):
        print(f"\n{plain(shown.sheet)}")
        for warning in shown.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        paths += write_sheet(shown.sheet, out / shown.name)
        if shown.table.spec.plot.kind:
            path = out / f"{shown.name}_plot.png"
            plot = write_plot(shown.table, shown.finished, shown.data, grid.scale, path)
            paths += [plot] if plot else []
    if paths:
        print("\n" + "\n".join(f"written: {path}" for path in paths), flush=True)
    return paths


def say_grid(grid: Grid, output_dir: Path, out: Path) -> list[Path]:
    """Says what `render_grid` would write, and from how many cells; those paths."""
    paths = []
    for shown in tables_of(grid, output_dir):
        runs = {run.digest for row in shown.table.rows for run in row.runs}
        print(f"would be written: {out / shown.name}.*, from {len(runs & shown.finished.keys())} of {len(runs)} cells")
        paths.append(out / shown.name)
    return paths


def grids_of(options: argparse.Namespace) -> Iterator[tuple[str, list[Grid]]]:
    """Each file of the command and its grids: with "auto" also on the shapes, which may have stood in for its data."""
    items = [options.file, *options.overrides]
    for file in [item for item in items if "=" not in item] or [options.file]:
        recipes = load_grid(file, options.scale, options.seeds, [item for item in items if "=" in item])
        is_auto = options.data == "auto"
        grids = [recipes] if is_auto or recipes.spec.counted else []
        if not recipes.spec.counted:
            grids.append(recipes.prepared(partial(resolve_data, data="shapes" if is_auto else options.data)))
        yield file, grids


def run(options: argparse.Namespace) -> int:
    """What the command does; the exit status."""
    output_dir = Path(options.output_dir)
    out = Path(options.out) if options.out else output_dir / "tables"
    status = 1  # until anything is written
    render = say_grid if options.dry_run else render_grid
    with user_errors():
        for file, grids in grids_of(options):
            written = [path for grid in grids for path in render(grid, output_dir, out)]
            if written:
                status = 0
            else:
                print(
                    f"{file}: no cell is finished at scale {options.scale} (records are looked for in {output_dir}/"
                    f"records and sweeps/records); run `python -m sweeps.run {file} --scale {options.scale}`",
                    file=sys.stderr,
                )
    return status
