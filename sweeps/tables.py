"""The tables of a sweep, from finished result records."""

import argparse
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from experiments.pipeline.build import resolve_data
from experiments.runtime.errors import user_errors
from experiments.runtime.records import data_name
from sweeps.counted import counted
from sweeps.grid import Grid, load_grid
from sweeps.measure import Finished, finished_by_data
from sweeps.plots import write_plot
from sweeps.render import plain, write_sheet
from sweeps.sheet import make_sheet


def render_grid(grid: Grid, output_dir: Path, out: Path) -> list[Path]:
    """Writes every table of the sweep for each data set of its records and prints it; the paths of the files.

    Rows of different data never share a table. No file is written when no cell is finished.
    Raises ValueError for two records of one run on the same images that differ in what else it read.
    """
    if grid.spec.counted:
        firsts = [row.runs[0] for table in grid.tables for row in table.rows if row.runs]  # seeds count the same
        return render(grid, {"": {run.digest: counted(run.experiment) for run in firsts}}, "", out)
    by_data = finished_by_data(grid, output_dir)
    is_shared = Counter(map(data_name, by_data))  # only then a name needs its fingerprint
    by_data = {data_id if is_shared[name := data_name(data_id)] > 1 else name: by_data[data_id] for data_id in by_data}
    return [path for name in sorted(by_data) for path in render(grid, by_data, name, out)]


def render(grid: Grid, by_data: dict[str, Finished], data: str, out: Path) -> list[Path]:
    paths, finished = [], by_data[data]
    for table in grid.tables:
        if not any(run.digest in finished for row in table.rows for run in row.runs):
            continue
        name = grid.name if len(grid.tables) == 1 else f"{grid.name}_{table.spec.id}"
        stem = out / (name if grid.spec.counted else f"{name}_{grid.scale}_{data}")
        sheet, warnings = make_sheet(grid, table, by_data, data)
        print(f"\n{plain(sheet)}")
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        paths += write_sheet(sheet, stem)
        if table.spec.plot.kind:
            plot = write_plot(table, finished, data, grid.scale, stem.with_name(f"{stem.name}_plot.png"))
            paths += [plot] if plot else []
    print("\n" + "\n".join(f"written: {path}" for path in paths), flush=True)
    return paths


def run(options: argparse.Namespace) -> int:
    """What the command does; the exit status."""
    items = [options.file, *options.overrides]
    output_dir = Path(options.output_dir)
    out = Path(options.out) if options.out else output_dir / "tables"
    status = 1  # until anything is written
    with user_errors():
        for file in [item for item in items if "=" not in item] or [options.file]:
            recipes = load_grid(file, options.scale, options.seeds, [item for item in items if "=" in item])
            is_auto = options.data == "auto"
            grids = [recipes] if is_auto or recipes.spec.counted else []
            if not recipes.spec.counted:  # with "auto" also the shapes, which may have stood in for the recipes' data
                resolve = partial(resolve_data, data="shapes" if is_auto else options.data)
                grids.append(recipes.prepared(resolve))
            written = [path for grid in grids for path in render_grid(grid, output_dir, out)]
            if written:
                status = 0
            else:
                print(
                    f"{file}: no cell is finished at scale {options.scale} (records are looked for in {output_dir}/"
                    f"records and sweeps/records); run `python -m sweeps.run {file} --scale {options.scale}`",
                    file=sys.stderr,
                )
    return status
