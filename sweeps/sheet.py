"""From result records to a sheet: the paper's value, the mean measured here over seeds, and the difference."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from experiments.config.experiment import Experiment
from experiments.runtime import code_version
from experiments.runtime.records import Record
from sweeps.grid import Grid, Row, Run, Table, show
from sweeps.schema import ColumnSpec

DAGGER = "†"
SHAPES_WARNING = "RENDERED SHAPES, NOT REAL IMAGES: no number here says anything about the papers' data."
PARAMETERS = "parameters/trained-without-discriminator"
Finished = dict[str, Record]  # digest -> record, all of one data set


@dataclass(frozen=True)
class Sheet:
    """A table as text, ready for any output format."""

    title: str
    groups: list[tuple[str, list[str]]]  # (head, heads of its columns); a column without a second head has ""
    body: list[list[str]]
    caption: list[str]  # sentences
    warning: str = ""  # shown in a way that cannot be overlooked
    num_row_heads: int = 1
    rules: list[int] = field(default_factory=list)  # rows that begin a block
    breaks: list[int] = field(default_factory=list)  # rows that the sweep sets apart, by a heavier rule above them


@dataclass(frozen=True)
class Measured:
    """One metric of one row, in the column's unit."""

    mean: float
    std: float | None  # sample standard deviation over seeds; None for a single run
    protocols: frozenset[str]

    def text(self, form: str) -> str:
        """The spread has the decimals of the mean."""
        mean = format(self.mean, form)
        if self.std is None:
            return mean
        decimals = len(mean.partition(".")[2])
        return f"{mean} ± {format(self.std, form if 'e' in mean else f'.{decimals}f')}"


def measure(column: ColumnSpec, row: Row, finished: Finished) -> Measured | None:
    """Mean and spread of the column's metric, or of the one that the row's `use` gives for it; None without a number.

    A number that `use` chooses differs from its column on purpose: its protocol is not compared.
    """
    other = row.cell.use.get(column.metric)
    numbers = [pair for record in records_of(row, finished) if (pair := find_number(record, other or column.metric))]
    if not numbers:
        return None
    values = [number * column.scale for number, _ in numbers]
    protocols = frozenset(protocol for _, protocol in numbers if not other)
    return Measured(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, protocols)


def find_number(record: Record, metric: str) -> tuple[float, str] | None:
    """The metric and its protocol. Speed and size are facts of the run, not among its metrics."""
    if metric in record["metrics"]:
        return record["metrics"][metric], record["protocols"].get(metric, "not stated")
    facts = {"images_per_second": f"training/{record.get('device')}", "parameters": PARAMETERS}
    return (record[metric], facts[metric]) if metric in facts and metric in record else None


def records_of(row: Row, finished: Finished) -> list[Record]:
    return [finished[run.digest] for run in row.runs if run.digest in finished]


def make_sheet(grid: Grid, table: Table, by_data: Mapping[str, Finished], data: str) -> tuple[Sheet, list[str]]:
    """The table on the data set `data`, and warnings for the terminal. A missing run leaves its cell empty."""
    spec, finished = table.spec, by_data[data]
    groups: list[tuple[str, list[str]]] = [(head, [""]) for head in spec.row_heads]
    body = [[show(row.heads[head]) for head in spec.row_heads] for row in table.rows]
    usual, warnings = [], []
    for column in spec.columns:
        of_column = [measure(column, row, finished) for row in table.rows]
        protocol, warning = usual_protocol(column, of_column)
        usual.append((column, protocol))
        warnings += warning
        heads = ["ours"]
        if any(column.metric in row.cell.paper for row in table.rows):
            heads = ["paper", "ours", "diff"] if has_papers_scale(protocol) else ["paper", "ours"]
        groups.append((column.head, heads))
        for line, row, measured in zip(body, table.rows, of_column, strict=True):
            texts = entries(column, row, measured, protocol)
            line += [texts[head] for head in heads]

    if grid.spec.counted:
        lines = ["Ours: counted by building the networks.", f"Paper: {spec.paper}; diff = ours - paper.", spec.note]
    else:
        origin, of_code = origins([record for row in table.rows for record in records_of(row, finished)])
        warnings += [f"table {spec.id}: {of_code}"] if of_code else []
        lines = [*caption(grid, table, by_data, usual, data), origin]
    blocks = [i for i in range(1, len(body)) if body[i][0] != body[i - 1][0]]
    sheet = Sheet(
        title=spec.title,
        groups=groups,
        body=body,
        caption=lines,
        warning=SHAPES_WARNING if data == "shapes" else "",
        num_row_heads=len(spec.row_heads),
        rules=blocks if len(blocks) < len(body) - 1 else [],  # no rule between rows that are all different
        breaks=[i for i, row in enumerate(table.rows) if row.cell.rule and i],
    )
    return sheet, warnings


def entries(column: ColumnSpec, row: Row, measured: Measured | None, usual: str) -> dict[str, str]:
    """The row's texts under one column."""
    paper = row.cell.paper.get(column.metric)
    texts = {"paper": "" if paper is None else format(paper, column.format), "ours": "", "diff": ""}
    if measured is not None:
        texts["ours"] = measured.text(column.format) + (f" {DAGGER}" if measured.protocols - {usual} else "")
        if paper is not None:
            texts["diff"] = format(measured.mean - paper, f"+{column.format}")
    return texts


def has_papers_scale(protocol: str) -> bool:
    """Whether a difference from the paper's number means anything: not with another network's features, or as speed."""
    return "efficientnet" not in protocol and not protocol.startswith("training/")


def usual_protocol(column: ColumnSpec, of_column: Iterable[Measured | None]) -> tuple[str, list[str]]:
    """The protocol of most cells of a column, and a warning when there are others."""
    ids = Counter(protocol for measured in of_column if measured is not None for protocol in measured.protocols)
    if not ids:
        return "", []
    (usual, _), *others = ids.most_common()
    if not others:
        return usual, []
    named = ", ".join(f"'{protocol}'" for protocol, _ in others)
    return usual, [
        f"{column.metric}: cells marked {DAGGER} were measured by {named}, the others by '{usual}': do not compare them"
    ]


def caption(
    grid: Grid, table: Table, by_data: Mapping[str, Finished], usual: Sequence[tuple[ColumnSpec, str]], data: str
) -> list[str]:
    """What a reader must know to trust the numbers, one sentence an element."""
    spec = table.spec
    runs = [run for row in table.rows for run in row.runs]
    sizes = "; ".join(sorted({images(run.experiment) for run in runs}))
    seeds = ", ".join(map(str, grid.seeds))
    spread = f"mean ± standard deviation over seeds {seeds}" if len(grid.seeds) > 1 else f"seed {seeds}"
    lines = [f"Ours: {data}, {sizes}, scale {grid.scale}, {spread}.", f"Paper: {spec.paper}."]
    if data.startswith("image_folder"):
        lines.append("diff = ours - paper.")
    else:
        lines.append(
            "The paper's values and ours are of different data, image size and protocol: compare the order of the "
            "rows, not the digits (diff = ours - paper, left out where features or machine are others)."
        )
    measured = [f"{column.head}: {protocol}" for column, protocol in usual if protocol]
    lines.append(f"Protocols of ours: {'; '.join(measured)}.")
    if absent := [column for column, protocol in usual if not protocol]:
        named = (f"{column.head} (needs {column.needs})" if column.needs else column.head for column in absent)
        lines.append(f"Not measured: {', '.join(named)}.")
    lines += gaps(runs, by_data, data)
    return lines + ([spec.note] if spec.note else [])


def gaps(runs: Sequence[Run], by_data: Mapping[str, Finished], data: str) -> list[str]:
    """Why cells are empty: their runs are finished on other data, or on none."""
    empty = [run.digest for run in runs if run.digest not in by_data[data]]
    others = sorted(other for other, finished in by_data.items() if not finished.keys().isdisjoint(empty))
    num_missing = sum(all(digest not in finished for finished in by_data.values()) for digest in empty)
    lines = []
    if others:
        lines.append(
            f"{len(empty) - num_missing} of {len(runs)} runs are of other data ({', '.join(others)}) and stand in a "
            "table of their own; their cells are empty here."
        )
    if num_missing:
        lines.append(f"{num_missing} of {len(runs)} runs are missing; their cells are empty.")
    return lines


def origins(records: Sequence[Record]) -> tuple[str, str]:
    """A sentence about the commits of the records, and a warning where the code that decides numbers differs.

    Commits of the same code stand together; code that cannot be looked up counts as that of its commit alone.
    """
    versions: dict[str, set[str]] = {}
    is_comparable = True
    for record in records:
        made_on = record.get("environment", {})
        commit = made_on.get("commit", "")[:9] or "unknown"
        commit += "+changes" if made_on.get("dirty") else ""
        code = code_version.of_record(record)
        is_comparable &= bool(code)
        versions.setdefault(code or commit, set()).add(commit)
    groups = sorted(" = ".join(sorted(commits)) for commits in versions.values())
    if len(groups) == 1:
        return f"Commit {groups[0]}.", ""
    what = "cells of different commits, whose code could not be compared here"
    if is_comparable:
        what = f"cells of {len(groups)} versions of the code that decides numbers, by commit"
    warning = f"{what}: {'; '.join(groups)}"
    return f"WARNING: {warning}.", warning


def images(experiment: Experiment) -> str:
    """ "6,400 training and 1,000 validation images at 32 px"."""
    data = experiment.data
    train, val = (f"{size:,}" if size else "all" for size in (data.train_size, data.val_size))
    return f"{train} training and {val} validation images at {data.image_size} px"
