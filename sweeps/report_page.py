"""The verdicts on the papers' claims and the tables of sweeps as one page that needs no network."""

import argparse
import tempfile
from pathlib import Path

from experiments.pipeline.page import Image, Section, Table, uri, write_page
from experiments.runtime.errors import user_errors
from sweeps.claims_page import because, tally
from sweeps.plots import write_plot
from sweeps.schema import SWEEPS
from sweeps.tables import Shown, grids_of, tables_of
from sweeps.verdicts import SCALES, verdicts_of


def claims_section(output_dir: Path) -> Section:
    """All claims, each at the scale that has most of its cells."""
    verdicts = verdicts_of(SWEEPS / "claims.yaml", SCALES, output_dir)
    rows: list[list[str | Image]] = []
    for one in verdicts:
        claim = one.claim
        rows.append([claim.id, claim.where, claim.statement, one.verdict, one.scale, because(one)])
    heads = ["claim", "where", "statement", "verdict", "scale", "because"]
    return Section(
        "What holds of both papers' conclusions", [tally(verdicts)], Table(heads, rows, row_heads=len(heads))
    )


def table_section(shown: Shown, scale: str) -> Section:
    sheet, images = shown.sheet, []
    heads = [sub or head for head, subs in sheet.groups for sub in subs]
    groups = [(head if any(subs) else "", len(subs)) for head, subs in sheet.groups]
    if shown.table.spec.plot.kind:
        with tempfile.TemporaryDirectory() as folder:
            plot = write_plot(shown.table, shown.finished, shown.data, scale, Path(folder) / "plot.png")
            images += [Image(uri(plot.read_bytes()), sheet.title)] if plot else []
    text = [line for line in (sheet.warning, *sheet.caption, *sheet.notes) if line]
    table = Table(heads, [list(row) for row in sheet.body], groups, sheet.num_row_heads, sheet.best)
    return Section(sheet.title, text, table, images)


def run(options: argparse.Namespace) -> int:
    """What the command does; the exit status."""
    with user_errors():
        output_dir = Path(options.output_dir)
        tables = [shown for _, grids in grids_of(options) for grid in grids for shown in tables_of(grid, output_dir)]
        if not tables:
            raise ValueError(f"no cell of these sweeps is finished at scale {options.scale}; `make tables` says more")
        out = Path(options.out) if options.out else output_dir / "report.html"
        if options.dry_run:
            print(f"would be written: {out}, the claims and {len(tables)} tables")
            return 0
        sections = [claims_section(output_dir), *(table_section(shown, options.scale) for shown in tables)]
        write_page(out, f"Tables and claims, scale {options.scale}", sections)
        print(out)
    return 0
