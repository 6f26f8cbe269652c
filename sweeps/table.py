"""Renders the tables of a sweep from finished result records; never trains.

python -m sweeps.table sweeps/ablation_codebook.yaml --scale reduced
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from experiments.runtime.errors import user_errors
from experiments.runtime.records import PUBLISHED, data_name, find_records, images_id
from sweeps.grid import Grid
from sweeps.plan import table_grids
from sweeps.plots import write_plot
from sweeps.render import plain, write_sheet
from sweeps.results import Found, make_sheet
from sweeps.run import add_seeds
from sweeps.workers import add_common_arguments


def render(grid: Grid, by_data: dict[str, Found], data_id: str, out: Path, difference: bool = True) -> list[Path]:
    """Writes every table of the sweep for the data set `data_id`, prints it, and gives the files' paths."""
    paths, found = [], by_data[data_id]
    for table in grid.tables:
        if not any(run.digest in found for row in table.rows for run in row.runs):
            continue
        name = grid.name if len(grid.tables) == 1 else f"{grid.name}_{table.spec.id}"
        stem = out / f"{name}_{grid.scale}_{data_id}"
        sheet, warnings = make_sheet(grid, table, by_data, data_id, difference)
        print(f"\n{plain(sheet)}")
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        paths += write_sheet(sheet, stem)
        if table.spec.plot.kind:
            plot = write_plot(table, found, data_id, grid.scale, stem.with_name(f"{stem.name}_plot.png"))
            paths += [plot] if plot else []
    return paths


def find_all(grid: Grid, directories: list[Path]) -> dict[str, Found]:
    """The grid's finished runs by the name of their images: rows of different data never share a table.

    The fingerprint is part of the name where two data sets have the same. Raises ValueError for two records of one run
    that differ in what else it read.
    """
    found: dict[str, Found] = {}
    for run in grid.runs:
        for data_id, record in find_records(run.experiment, directories).items():
            if (before := found.setdefault(images_id(data_id), {}).setdefault(run.digest, record)) is not record:
                raise ValueError(
                    f"{run.label}: two records, of {before['data_id']} and {data_id}: with another codebook or another "
                    f"model below; delete the one that is not to be shown ({run.digest}.*.json)"
                )
    names = Counter(map(data_name, found))
    return {data_id if names[data_name(data_id)] > 1 else data_name(data_id): of for data_id, of in found.items()}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.table",
        description="Render the tables of a sweep as Markdown, LaTeX and PNG from finished records, "
        "one table for each data set that was used. Nothing is trained; the cell of a missing run stays empty.",
    )
    parser.add_argument("items", nargs="+", metavar="FILE|key=value", help="sweeps, and changes to every experiment")
    add_common_arguments(parser)
    add_seeds(parser)
    parser.add_argument("--out", help="folder of the tables (default: OUTPUT_DIR/tables)")
    parser.add_argument(
        "--difference", action=argparse.BooleanOptionalAction, default=True, help="columns ours - paper"
    )
    return parser


def render_sweep(file: str, overrides: list[str], options: argparse.Namespace) -> list[Path]:
    """The files written; none when no cell is finished."""
    output_dir = Path(options.output_dir)
    out = Path(options.out) if options.out else output_dir / "tables"
    paths: list[Path] = []
    for grid in table_grids(output_dir, file, options.scale, options.seeds, overrides, options.data):
        by_data = find_all(grid, [output_dir / "records", PUBLISHED])
        for data_id in sorted(by_data):
            paths += render(grid, by_data, data_id, out, options.difference)
    return paths


def main(arguments: list[str] | None = None) -> int:
    options = build_parser().parse_intermixed_args(arguments)
    with user_errors():
        files = [item for item in options.items if "=" not in item]
        overrides = [item for item in options.items if "=" in item]
        if not files:
            raise ValueError("give a sweep, for example sweeps/ablation_codebook.yaml")
        paths: list[Path] = []
        for file in files:
            if not (written := render_sweep(file, overrides, options)):
                print(
                    f"{file}: no cell is finished at scale {options.scale} (records are looked for in "
                    f"{options.output_dir}/records and sweeps/records); run "
                    f"`python -m sweeps.run {file} --scale {options.scale}`",
                    file=sys.stderr,
                )
            paths += written
        print("\n" + "\n".join(f"written: {path}" for path in paths))
    return 0 if paths else 1


if __name__ == "__main__":
    sys.exit(main())
