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


def measure(column: ColumnSpec, records: Iterable[Record], use: Mapping[str, str] | None = None) -> Measured | None:
    """Mean and spread of the column's metric, or of the one that `use` gives for it; None when no record has it.

    A number that `use` chooses differs from its column on purpose: its protocol is not compared.
    """
    other = (use or {}).get(column.metric)
    numbers = [pair for record in records for pair in find_number(record, other or column.metric)]
    if not numbers:
        return None
    values = [number * column.scale for number, _ in numbers]
    protocols = frozenset(protocol for _, protocol in numbers if not other)
    return Measured(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, protocols)


def find_number(record: Record, metric: str) -> list[tuple[float, str]]:
    """The metric and its protocol, or nothing. Speed and size are facts of the run, not among its metrics."""
    if metric in record["metrics"]:
        return [(record["metrics"][metric], record["protocols"].get(metric, "not stated"))]
    facts = {"images_per_second": f"training/{record.get('device')}", "parameters": PARAMETERS}
    return [(record[metric], facts[metric])] if metric in facts and metric in record else []


def make_sheet(
    grid: Grid, table: Table, by_data: Mapping[str, Finished], data: str, difference: bool = True
) -> tuple[Sheet, list[str]]:
    """The table on the data set `data`, and warnings for the terminal. A missing run leaves its cell empty."""
    spec, finished = table.spec, by_data[data]
    of_row = [[finished[run.digest] for run in row.runs if run.digest in finished] for row in table.rows]
    values = [
        [measure(column, records, row.use) for column in spec.columns]
        for row, records in zip(table.rows, of_row, strict=True)
    ]  # [row][column]
    usual, warnings = usual_protocols(spec.columns, values)

    groups: list[tuple[str, list[str]]] = [(head, [""]) for head in spec.row_heads]
    body = [[show(row.heads[head]) for head in spec.row_heads] for row in table.rows]
    for index, column in enumerate(spec.columns):
        in_paper = any(column.metric in row.paper for row in table.rows)
        has_difference = difference and has_papers_scale(usual[index])
        groups.append((column.head, ["paper", "ours", "diff"][: 2 + has_difference] if in_paper else ["ours"]))
        for line, row, measured in zip(body, table.rows, (of[index] for of in values), strict=True):
            line += entries(column, row, measured, usual[index], in_paper, has_difference)

    records = [record for of in of_row for record in of]
    origin, warning = origins(records)
    warnings += [f"table {spec.id}: {warning}"] if warning else []
    blocks = [i for i in range(1, len(body)) if body[i][0] != body[i - 1][0]]
    sheet = Sheet(
        title=spec.title,
        groups=groups,
        body=body,
        caption=[*caption(grid, table, by_data, usual, data, difference), origin],
        warning=SHAPES_WARNING if data == "shapes" else "",
        num_row_heads=len(spec.row_heads),
        rules=blocks if len(blocks) < len(body) - 1 else [],  # no rule between rows that are all different
        breaks=[i for i, row in enumerate(table.rows) if row.rule and i],
    )
    return sheet, warnings


def entries(
    column: ColumnSpec, row: Row, measured: Measured | None, usual: str, in_paper: bool, difference: bool
) -> list[str]:
    """The row's texts under one column: [paper, ours, difference] or less."""
    paper = row.paper.get(column.metric)
    ours = "" if measured is None else measured.text(column.format)
    if measured is not None and measured.protocols - {usual}:
        ours += f" {DAGGER}"
    if not in_paper:
        return [ours]
    has_both = measured is not None and paper is not None
    diff = format(measured.mean - paper, f"+{column.format}") if has_both else ""  # type: ignore[union-attr,operator]
    return ["" if paper is None else format(paper, column.format), ours, *([diff] if difference else [])]


def has_papers_scale(protocol: str) -> bool:
    """Whether a difference from the paper's number means anything: not with another network's features, or as speed."""
    return "efficientnet" not in protocol and not protocol.startswith("training/")


def usual_protocols(
    columns: Sequence[ColumnSpec], values: Sequence[Sequence[Measured | None]]
) -> tuple[list[str], list[str]]:
    """The protocol of most cells of each column, and a warning for each column that has more than one."""
    usual, warnings = [], []
    for index, column in enumerate(columns):
        ids = Counter(p for row in values if (cell := row[index]) is not None for p in cell.protocols)
        usual.append(ids.most_common(1)[0][0] if ids else "")
        if len(ids) > 1:
            others = ", ".join(f"'{p}'" for p in ids if p != usual[-1])
            warnings.append(
                f"{column.metric}: cells marked {DAGGER} were measured by {others}, the others by "
                f"'{usual[-1]}': do not compare them"
            )
    return usual, warnings


def caption(
    grid: Grid, table: Table, by_data: Mapping[str, Finished], usual: Sequence[str], data: str, difference: bool
) -> list[str]:
    """What a reader must know to trust the numbers, one sentence an element."""
    spec = table.spec
    runs = [run for row in table.rows for run in row.runs]
    sizes = sorted({images(run.experiment) for run in runs})
    seeds = ", ".join(map(str, grid.seeds))
    lines = [
        f"Ours: {data}, {'; '.join(sizes)}, scale {grid.scale}, "
        + (f"mean ± standard deviation over seeds {seeds}." if len(grid.seeds) > 1 else f"seed {seeds}."),
        f"Paper: {spec.paper}.",
    ]
    if not data.startswith("image_folder"):
        lines.append(
            "The paper's values and ours are of different data, image size and protocol: compare the order "
            "of the rows, not the digits"
            + (" (diff = ours - paper, left out where features or machine are others)." if difference else ".")
        )
    elif difference:
        lines.append("diff = ours - paper.")
    measured = [f"{c.head}: {protocol}" for c, protocol in zip(spec.columns, usual, strict=True) if protocol]
    lines.append(f"Protocols of ours: {'; '.join(measured)}.")
    if absent := [c for c, protocol in zip(spec.columns, usual, strict=True) if not protocol]:
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
    if is_comparable:
        warning = f"cells of {len(groups)} versions of the code that decides numbers, by commit: {'; '.join(groups)}"
    else:
        warning = f"cells of different commits, whose code could not be compared here: {'; '.join(groups)}"
    return f"WARNING: {warning}.", warning


def images(experiment: Experiment) -> str:
    """ "6,400 training and 1,000 validation images at 32 px"."""
    data = experiment.data
    train, val = (f"{size:,}" if size else "all" for size in (data.train_size, data.val_size))
    return f"{train} training and {val} validation images at {data.image_size} px"
