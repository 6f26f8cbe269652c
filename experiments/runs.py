"""Lists the runs of an output folder: state, metrics, and what tells them apart.

    python -m experiments.runs [OUT] [--sort psnr] [--reverse] [--metrics rfid,psnr,usage/epoch]

The last column has the keys in which a run is not as most of the runs. Numbers of different protocols stand in
different columns; their ids are below the table.
"""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors

if TYPE_CHECKING:
    from experiments.pipeline.run_folders import RunFolder

METRICS = "rfid,psnr,usage/val,fid,bits_per_token/val,loss/val,probe/accuracy,classifier/accuracy"


def read_runs(out: Path) -> "list[RunFolder]":
    """Those that this version of the suite understands; the others are named. Raises ValueError where there is none."""
    from experiments.pipeline.run_folders import read_run
    from lightning_modules.checks import require

    runs = []
    for folder in sorted(path for path in (out / "experiments").glob("*") if path.is_dir()):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    require(bool(runs), f"{out}/experiments: holds no run; name the folder that was runtime.output_dir")
    return runs


def show(runs: "list[RunFolder]", metrics: list[str], unlike: dict[Path, str]) -> None:
    from experiments.pipeline.run_folders import columns_of

    columns = columns_of(runs, metrics)
    marks = {key: f"{key[0]} [{number}]" for number, key in enumerate(columns, 1)}
    table = Table(box=None, header_style="bold")
    table.add_column("run")
    table.add_column("state")
    for mark in marks.values():
        table.add_column(mark, justify="right")
    table.add_column("unlike most runs")
    for index, run in enumerate(runs):
        values = [values[index] for values in columns.values()]
        numbers = ["" if value is None else f"{value:.4g}" for value in values]
        table.add_row(run.name, run.state, *numbers, unlike[run.folder])
    console = Console(width=10_000, highlight=False, markup=False)  # a line each; a terminal wraps it
    console.print(table)
    for (name, protocol), mark in marks.items():
        console.print(f"{mark.removeprefix(name + ' ')} {protocol}")


def main() -> None:
    parser = arguments.plain("runs", __doc__)
    parser.add_argument("out", nargs="?", default="runs", help="folder of the runs (default: runs)")
    parser.add_argument("--metrics", default=METRICS, help=f"names with commas between them (default: {METRICS})")
    parser.add_argument("--sort", metavar="METRIC", default="", help="lowest first; runs without it come last")
    parser.add_argument("--reverse", action="store_true", help="highest first")
    given = parser.parse_args()
    from experiments.pipeline.run_folders import unlike_most
    from lightning_modules.checks import require

    with user_errors():
        runs, metrics = read_runs(Path(given.out)), given.metrics.split(",")
        unlike = dict(zip((run.folder for run in runs), unlike_most(runs), strict=True))
        if given.sort:
            measured = {run.folder: pair[0] for run in runs if (pair := run.metric(given.sort))}
            known = sorted({name for run in runs if run.record for name in run.record["metrics"]})
            require(bool(measured), f"--sort {given.sort}: no run has it; there are {', '.join(known)}")
            sign = -1 if given.reverse else 1
            runs.sort(key=lambda run: sign * measured.get(run.folder, sign * math.inf))
            metrics = list(dict.fromkeys([given.sort, *metrics]))
        show(runs, metrics, unlike)


if __name__ == "__main__":
    main()
