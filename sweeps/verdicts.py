"""Which conclusions of the papers hold, computed from result records."""

import argparse
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from experiments.config.values import flatten, read_yaml
from experiments.runtime.records import data_name
from sweeps.claims_page import BY_T, OF_FIRST, Claim, Verdict, brief, page, pictures, quote, write
from sweeps.differences import Side
from sweeps.grid import Grid, Row, label_of, load_grid
from sweeps.heads import heads_of
from sweeps.index import index
from sweeps.measure import (
    Finished,
    Measured,
    all_seeds,
    finished_by_data,
    head_of,
    measure,
    reachable,
    records_of,
    version_of,
)
from sweeps.predicates import Cells, check, evaluate, leaves
from sweeps.schema import SWEEPS, SweepSpec, TableSpec, expect, naming, read_spec

ROOT = SWEEPS.parent
SCALES = ("paper", "cifar", "reduced")  # the first with most finished cells is taken; quick is no evidence


def read_claims(path: Path) -> list[Claim]:
    """Raises ValueError that names file, claim and key for a claim that is not well formed or names no such cells."""
    entries = read_yaml(path).get("claims")
    claims: list[Claim] = []
    with naming(path):
        if not isinstance(entries, list):
            raise ValueError("needs a list `claims`")
        for number, entry in enumerate(entries, 1):
            with naming(f"claim {entry.get('id', number) if isinstance(entry, dict) else number}"):
                claims.append(read_claim(entry))
        ids = [claim.id for claim in claims]
        if twice := [name for name in ids if ids.count(name) > 1]:
            raise ValueError(f"claim {twice[0]}: stands twice")
    return claims


def read_claim(entry: Any) -> Claim:
    if not isinstance(entry, dict):
        raise ValueError("needs `key: value` lines")
    keys = Claim.__dataclass_fields__
    expect(entry, keys, "key")
    if missing := [key for key in ("id", "where", "statement", "test") if not entry.get(key)]:
        raise ValueError(f"{missing[0]}: is missing")
    claim = Claim(**entry)
    for key, kind in (("seeds", int), ("margin", int | float)):
        if not isinstance(getattr(claim, key), kind) or getattr(claim, key) <= 0:
            raise ValueError(f"{key}={getattr(claim, key)}: must be a number above 0")
    check(claim.test, claim.given)
    for reference, rows, metrics in leaves(claim.test, claim.given):
        check_cells(reference, rows, metrics)
    return claim


def check_cells(reference: str, rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> None:
    """Raises ValueError for a table, a row or a metric that the sweeps do not have."""
    table = table_spec(reference)
    for metric in metrics:
        expect(operands(metric), [column.metric for column in table.columns], f"{reference}: metric")
    for row in rows:
        expect(row, table.row_heads, f"{reference}: row head")
        if not any(row.items() <= cell.row.items() for cell in table.cells if cell.experiment):
            raise ValueError(f"{reference}: no row that is trained has {row}")


@cache
def sweep_spec(name: str) -> SweepSpec:
    if not (path := SWEEPS / f"{name}.yaml").is_file():
        raise ValueError(f"table: there is no {path}")
    return read_spec(path, SweepSpec)


def table_spec(reference: str) -> TableSpec:
    name, _, wanted = reference.partition("#")
    tables = {table.id: table for table in sweep_spec(name).tables}
    expect([wanted], tables, f"table {reference}")
    return tables[wanted]


def operands(metric: str) -> list[str]:
    """ "a - b" is the difference of two metrics of one record."""
    return metric.split(" - ")


class Records:
    """The records of all sweeps at one scale, published ones and those of an output folder."""

    def __init__(self, scale: str, output_dir: Path) -> None:
        self.scale, self.output_dir = scale, output_dir
        self.cells = Cells(self.side, self.history)
        self.sides: dict[str, Side] = {}

    @cached_property
    def seeds(self) -> str:
        return ",".join(map(str, all_seeds(self.output_dir))) + ","

    @cache  # noqa: B019, one object a scale, for the time of the command
    def sweep(self, name: str) -> tuple[Grid, dict[str, str], Finished]:
        """The grid, of each finished run the images, and its record; of several sets of images, that with most."""
        grid = load_grid(SWEEPS / f"{name}.yaml", self.scale, self.seeds)
        by_data = finished_by_data(grid, self.output_dir)
        images: dict[str, str] = {}
        finished: Finished = {}
        for data in sorted(by_data, key=lambda data: -len(by_data[data])):
            for digest, record in by_data[data].items():
                if data_name(data) != "shapes":
                    images.setdefault(digest, data)
                    finished.setdefault(digest, record)
        return grid, images, finished

    def row(self, reference: str, wanted: dict[str, Any]) -> Row | None:
        """None where the scale does not train it."""
        name, _, table_id = reference.partition("#")
        grid, *_ = self.sweep(name)
        (table,) = (table for table in grid.tables if table.spec.id == table_id)
        rows = [row for row in table.rows if row.runs and wanted.items() <= row.heads.items()]
        if len(rows) > 1:
            raise ValueError(f"{reference}: {wanted} picks {len(rows)} rows at scale {self.scale}: name more heads")
        return rows[0] if rows else None

    def side(self, reference: str, wanted: dict[str, Any], metric: str) -> Side:
        if (key := f"{reference} {metric} {wanted}") not in self.sides:
            self.sides[key] = self.make_side(reference, wanted, metric)
        return self.sides[key]

    def make_side(self, reference: str, wanted: dict[str, Any], metric: str) -> Side:
        row = self.row(reference, wanted)
        if row is None:
            return Side(f"{label_of(wanted)} (no cell of scale {self.scale})", None)
        _, images, finished = self.sweep(reference.partition("#")[0])
        columns = {column.metric: column for column in table_spec(reference).columns}
        parts = [measure(columns[name], row, finished) for name in operands(metric)]
        paper = [row.cell.papers(name) for name in operands(metric)]
        records = records_of(row, finished)
        digests = [run.digest for run in row.runs if finished.get(run.digest) in records]
        measured = difference_of(parts)
        protocols = measured.all_protocols if measured else frozenset()
        return Side(
            label=label_at(self.scale, row, wanted, finished),
            measured=measured,
            paper=None if None in paper else sum(sign * value for sign, value in zip((1, -1), paper, strict=False)),  # type: ignore[operator, misc]
            digests=tuple(digests),
            data=images[digests[0]] if digests else "",
            doubt=judged_by_itself(records, measured),
            shares_tokenizer=share_tokenizer(records),
            reachable=reachable(metric, row, finished),
            head=" - ".join(
                f"({head})" if len(parts) > 1 else head
                for head in (head_of(columns[name].head, min(protocols, default="")) for name in operands(metric))
            ),
        )

    def history(self, reference: str, wanted: dict[str, Any], metric: str) -> list[Side]:
        row = self.row(reference, wanted)
        _, images, finished = self.sweep(reference.partition("#")[0])
        if row is None:
            return []
        records = records_of(row, finished)
        histories = [values for record in records if (values := record.get("history", {}).get(metric))]
        protocols = frozenset(record["protocols"][metric] for record in records if metric in record["protocols"])
        (column,) = (column for column in table_spec(reference).columns if column.metric == metric)
        digests = [run.digest for run in row.runs if run.digest in finished]
        return [
            Side(
                f"{label_at(self.scale, row, wanted, finished)}, block {number}",
                Measured(tuple(value * column.scale for value in values), protocols, version_of(records[0])),
                digests=tuple(digests),
                data=images[digests[0]],
                shares_tokenizer=share_tokenizer(records),
            )
            for number, values in enumerate(zip(*histories, strict=False), 1)
        ]


def label_at(scale: str, row: Row, wanted: Mapping[str, Any], finished: Finished) -> str:
    """The heads that pick the row, as the table of this scale prints them: LC, K 100,000."""
    printed = dict(zip(row.heads, heads_of(scale, row, finished, "these images"), strict=True))
    return ", ".join(
        text if isinstance(wanted[head], str) else f"{head} {text}" for head in wanted if (text := printed[head])
    )


def difference_of(parts: Sequence[Measured | None]) -> Measured | None:
    """The only part, or seed by seed the first less the second."""
    first, *rest = parts
    if first is None or not rest:
        return first
    (second,) = rest
    if second is None or len(first.values) != len(second.values):
        return None
    values = tuple(a - b for a, b in zip(first.values, second.values, strict=True))
    return Measured(values, first.protocols | second.protocols, first.version, first.chosen | second.chosen)


def share_tokenizer(records: Sequence[dict[str, Any]]) -> bool:
    """Whether several trainings stand on the same one."""
    upstreams = [record["config"].get("upstream") for record in records]
    return len(upstreams) > 1 and upstreams[0] is not None and all(each == upstreams[0] for each in upstreams)


def judged_by_itself(records: Sequence[dict[str, Any]], measured: Measured | None) -> str:
    """Words where the network that judges also trained the model, gave it its codes, or selected the images."""
    for protocol in measured.all_protocols if measured else ():
        judge = re.match(r"(?:rfid|fid|ris|is)/([^@/]+)", protocol)
        if judge and f"-by-{judge[1]}@" in protocol:
            return f"the judge, {judge[1]}, also selected the images"
        for record in records if judge else ():
            config = flatten(record["config"])
            used = {key for key, value in config.items() if value == judge[1] and ".metrics." not in key}  # type: ignore[index]
            unused = {
                f"{key}_network" for key, value in config.items() if key.endswith("loss.perceptual") and not value
            }
            if used - unused:
                return f"the judge, {judge[1]}, also took part in the training"  # type: ignore[index]
    return ""


def judge_claim(claim: Claim, records: Sequence[Records]) -> Verdict:
    """At the scale that has most of the claim's cells with enough seeds, then most records; the first of equals."""

    def evidence(scale: Records) -> tuple[int, int]:
        sides = [
            scale.side(reference, row, metric)
            for reference, rows, metrics in leaves(claim.test, claim.given)
            for row in rows
            for metric in metrics
        ]
        counts = [len(side.measured.values) for side in sides if side.measured]
        return sum(count >= claim.seeds for count in counts), sum(counts)

    best = max(records, key=evidence)
    verdict, findings = evaluate(claim.test, best.cells, claim.rules, claim.given)
    others = {
        BY_T: evaluate(claim.test, best.cells, replace(claim.rules, by_t=True), claim.given)[0],
        OF_FIRST: evaluate(claim.test, best.cells.first(claim.seeds), claim.rules, claim.given)[0],
    }
    return Verdict(claim, verdict, best.scale if any(evidence(best)) else "", findings, others)


def verdicts_of(claims_file: Path, scales: Iterable[str], output_dir: Path) -> list[Verdict]:
    claims = read_claims(claims_file)
    records = [Records(scale, output_dir) for scale in scales]
    return [judge_claim(claim, records) for claim in claims]


def run(options: argparse.Namespace) -> None:
    """What the command does. Raises ValueError."""
    scales = [options.scale] if options.scale else SCALES
    verdicts = verdicts_of(options.file or SWEEPS / "claims.yaml", scales, options.output_dir)
    print(brief(verdicts, "docs/claims.md"), end="")
    root: Path = options.root or ROOT
    if options.dry_run:
        print(f"would be written: docs/claims.md, README.md and docs/results.md of {root}")
        return
    write(root / "docs" / "claims.md", page(verdicts))
    first = {"verdicts": brief(verdicts, "docs/claims.md"), "pictures": pictures(root, SCALES)}
    quote(root / "README.md", first)
    quote(root / "docs" / "results.md", {"verdicts": brief(verdicts, "claims.md"), "tables": index(root)})
