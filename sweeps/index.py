"""The list of all tables: where each is, and how many runs it lacks."""

import re
from collections.abc import Iterator
from pathlib import Path

from experiments.config.values import read_yaml
from sweeps.claims_page import TABLES
from sweeps.grid import Grid, load_grid
from sweeps.measure import all_records, cost
from sweeps.schema import SWEEPS, scale_names

SCALE = "reduced"  # at which runs are counted of tables that have none


def index(root: Path) -> str:
    """The rendered tables, with scale and data in the name, and what is missing; below them those without a run."""
    lines = ["| table | file | runs missing |", "|---|---|---|"]
    for path in sorted((root / TABLES).glob("*.md")):
        text = path.read_text()
        missing = re.search(r"(\d+ of \d+) runs are missing(, about [^;]*)?", text)
        title, count = text.partition("\n")[0].strip("*"), "".join(missing.groups("")) if missing else "none"
        lines.append(f"| {title} | [{path.stem}](tables/{path.name}) | {count} |")
    records = all_records()
    for path, grid in grids():
        for table in grid.tables:
            runs = {run.digest: run for row in table.rows for run in row.runs}
            names = (f"{grid.name_of(table)}{end}.md" for end in ("", *(f"_{scale}_*" for scale in scale_names())))
            if runs and not any(any((root / TABLES).glob(name)) for name in names):
                count = f"all {len(runs)} of `{SCALE}`{cost(runs.values(), records)}"
                file = path.relative_to(SWEEPS.parent)
                link = f"[{file}](../{file})"
                lines.append(f"| {table.spec.title} | {link}, no run | {count} |")
    return "\n".join(lines) + "\n"


def grids() -> Iterator[tuple[Path, Grid]]:
    """Every sweep that makes tables, and its file."""
    for path in sorted(SWEEPS.rglob("*.yaml")):
        if "tables" in read_yaml(path):
            yield path, load_grid(path, SCALE)
