"""From result records to a sheet: the paper's value, the mean measured here over seeds, and the difference."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from experiments.config.experiment import Experiment
from experiments.runtime import code_version
from experiments.runtime.records import Record
from sweeps.grid import Grid, Row, Run, Table, show
from sweeps.heads import heads_of, retitled
from sweeps.measure import (
    ALL_REACHABLE,
    Finished,
    Measured,
    commit_of,
    cost,
    head_of,
    is_better,
    measure,
    reachable,
    records_of,
)
from sweeps.schema import ColumnSpec

DAGGER = "†"
SHAPES_WARNING = "RENDERED SHAPES, NOT REAL IMAGES: no number here says anything about the papers' data."


@dataclass(frozen=True)
class Sheet:
    """A table as text, ready for any output format."""

    title: str
    groups: list[tuple[str, list[str]]]  # (head, heads of its columns); a column without a second head has ""
    body: list[list[str]]
    caption: list[str]  # sentences, below the table in every format
    warning: str = ""  # shown in a way that cannot be overlooked
    num_row_heads: int = 1
    rules: list[int] = field(default_factory=list)  # rows that begin a block
    breaks: list[int] = field(default_factory=list)  # rows that the sweep sets apart, by a heavier rule above them
    best: frozenset[tuple[int, int]] = frozenset()  # (row, column) of the best of ours
    notes: list[str] = field(default_factory=list)  # more sentences, in Markdown alone
    folded: "Sheet | None" = None  # numbers of the paper alone, in Markdown alone


@dataclass(frozen=True)
class Column:
    """A column of a sheet, and what was measured of each row."""

    spec: ColumnSpec
    cells: list[Measured | None]
    protocol: str  # of most cells, but for how images are drawn; "" where nothing was measured
    samplers: list[str]  # how images are drawn, which is a row's own as its network is
    marked: list[bool]  # whether the cell has another protocol
    warnings: list[str]


def make_sheet(grid: Grid, table: Table, by_data: Mapping[str, Finished], data: str) -> tuple[Sheet, list[str]]:
    """The table on the data set `data`, and warnings for the terminal. A missing run leaves its cell empty.

    Rows and columns that hold the paper's numbers alone are folded into a sheet below.
    """
    spec, finished = table.spec, by_data[data]
    rows = [row for row in table.rows if row.runs]
    columns = [make_column(column, rows, finished) for column in spec.columns]
    shown = [column for column in columns if column.protocol]
    is_papers_data = grid.spec.counted or data.startswith("image_folder")
    num_seeds = usual_number(columns)
    heads = [(head, [""]) for head in spec.row_heads]
    body = [heads_of(grid.scale, row, finished, data) for row in rows]
    best: set[tuple[int, int]] = set()
    for column in shown:
        metric, subs, head = column.spec.metric, ["ours"], head_of(column.spec.head, column.protocol)
        if any(row.cell.papers(metric) is not None for row in rows):
            subs = ["paper", "ours"] + ["diff"] * (is_papers_data and has_papers_scale(column.protocol))
        is_own = head != column.spec.head and "paper" in subs  # never under one head with the paper's
        heads += [(column.spec.head, ["paper"]), (head, subs[1:])] if is_own else [(head, subs)]
        at = len(body[0]) + subs.index("ours")
        best |= {(number, at) for number in best_of(column, rows)}
        for line, row, measured, is_marked in zip(body, rows, column.cells, column.marked, strict=True):
            texts = entries(column.spec, row, measured, num_seeds, reachable(metric, row, finished))
            texts["ours"] += f" {DAGGER}" * is_marked
            line += [texts[sub] for sub in subs]

    warnings = [warning for column in columns for warning in column.warnings]
    if grid.spec.counted:
        lines, notes = ["Ours: counted by building the networks.", f"Paper: {spec.paper}; diff = ours - paper."], []
    else:
        records = [record for row in rows for record in records_of(row, finished)]
        origin, of_code = origins(records)
        warnings += [f"table {spec.id}: {of_code}"] if of_code else []
        lines = caption(grid, table, records, num_seeds, data, "; bold: best of ours" * bool(best))
        notes = [*details(grid, table, by_data, columns, data), origin]
    notes += [spec.note] if spec.note else []
    blocks = [i for i in range(1, len(body)) if body[i][0] != body[i - 1][0]]
    sheet = Sheet(
        title=retitled(spec.title, [column.protocol for column in shown]),
        groups=heads,
        body=body,
        caption=lines,
        warning=SHAPES_WARNING if data == "shapes" else "",
        num_row_heads=len(spec.row_heads),
        rules=blocks if len(blocks) < len(body) - 1 else [],  # no rule between rows that are all different
        breaks=[i for i, row in enumerate(rows) if row.cell.rule and i],
        best=frozenset(best),
        notes=notes,
        folded=folded(table, [column.spec for column in columns if not column.protocol]),
    )
    return sheet, warnings


def make_column(column: ColumnSpec, rows: Sequence[Row], finished: Finished) -> Column:
    """With a warning when not all cells have one protocol."""
    cells = [measure(column, row, finished) for row in rows]
    protocols = [
        {apart(protocol, sampler(row)) for protocol in measured.protocols} if measured else set[tuple[str, str]]()
        for row, measured in zip(rows, cells, strict=True)
    ]
    ids = Counter(protocol for pairs in protocols for protocol, _ in pairs)
    if not ids:
        return Column(column, cells, "by choice of the row" if any(cells) else "", [], [False] * len(rows), [])
    (usual, _), *others = ids.most_common()
    named = ", ".join(f"'{protocol}'" for protocol, _ in others)
    words = f"cells marked {DAGGER} were measured by {named}, the others by '{usual}': do not compare them"
    samplers = sorted({drawn for pairs in protocols for _, drawn in pairs} - {""})
    marked = [any(protocol != usual for protocol, _ in pairs) for pairs in protocols]
    return Column(column, cells, usual, samplers, marked, [f"{column.metric}: {words}"] if others else [])


def sampler(row: Row) -> str:
    """How the row's own recipe draws images; "" of a model that draws none."""
    return getattr(getattr(row.runs[0].experiment.model, "sampling", None), "id", "")


def apart(protocol: str, drawn: str) -> tuple[str, str]:
    """A protocol without the sampler's part, and that part, "" where it has none."""
    parts = protocol.split("/")
    return "/".join(part for part in parts if part != drawn), drawn if drawn in parts else ""


def usual_number(columns: Iterable[Column]) -> int:
    """Of seeds, in most cells."""
    counts = Counter(len(cell.values) for column in columns for cell in column.cells if cell)
    return counts.most_common(1)[0][0] if counts else 1


def best_of(column: Column, rows: Sequence[Row]) -> list[int]:
    """The rows with the best number of ours, where numbers differ; controls without a quantizer do not compete."""
    sign = is_better(column.spec.metric)
    numbers = {
        number: sign * cell.mean
        for number, (row, cell, is_marked) in enumerate(zip(rows, column.cells, column.marked, strict=True))
        if cell and not is_control(row) and not is_marked
    }
    means = set(numbers.values())
    return [number for number, mean in numbers.items() if sign and len(means) > 1 and mean == max(means)]


def is_control(row: Row) -> bool:
    model = row.runs[0].experiment.model
    return model.is_control or getattr(getattr(model, "quantizer", None), "name", "") == "none"


def entries(
    column: ColumnSpec, row: Row, measured: Measured | None, num_seeds: int, bound: float | None
) -> dict[str, str]:
    """The row's texts under one column. `bound`: the usage that its tokens can reach, in percent."""
    form, paper = column.format, row.cell.papers(column.metric)
    texts = {"paper": "" if paper is None else format(paper, form), "ours": "", "diff": ""}
    if measured is not None:
        of = f" of {bound:.3g}" if bound is not None and bound < ALL_REACHABLE else ""
        texts["ours"] = measured.text(form, num_seeds) + of
        if paper is not None:
            texts["diff"] = format(measured.mean - paper, f"+{form}")
    return texts


def has_papers_scale(protocol: str) -> bool:
    """Whether a difference from the paper's number means anything: not with another network's features, or as speed."""
    return "efficientnet" not in protocol and not protocol.startswith("training/")


def folded(table: Table, unmeasured: Sequence[ColumnSpec]) -> Sheet | None:
    """The paper's numbers of rows that nothing here trains, and of columns that nothing here has measured."""
    metrics = {column.metric for column in unmeasured}
    rows = [row for row in table.rows if row.cell.paper and (not row.runs or metrics & row.cell.paper.keys())]
    columns = [column for column in table.spec.columns if any(column.metric in row.cell.paper for row in rows)]
    if not rows:
        return None
    body = [[show(row.heads[head]) for head in table.spec.row_heads] for row in rows]
    for line, row in zip(body, rows, strict=True):
        line += [format(number, column.format) if (number := row.cell.paper.get(column.metric)) is not None else ""
                 for column in columns]  # fmt: skip
    heads = [(head, [""]) for head in (*table.spec.row_heads, *(column.head for column in columns))]
    return Sheet("The paper's numbers alone", heads, body, [], num_row_heads=len(table.spec.row_heads))


def caption(grid: Grid, table: Table, records: Sequence[Record], num_seeds: int, data: str, bold: str) -> list[str]:
    """What a reader must know to trust the numbers, in two lines."""
    (size, *_) = {run.experiment.data.image_size for run in grid.runs} or {0}
    over = (
        f"mean ± standard deviation over {num_seeds} seeds (another number in brackets)"
        if num_seeds > 1
        else "one seed"
    )
    is_papers_data = data.startswith("image_folder")
    how = "diff = ours - paper" if is_papers_data else "other images and networks: compare the order of rows"
    return [
        f"Ours: {data} at {size} px, scale {grid.scale}, {networks(records)}, {over}{bold}.",
        f"Paper: {table.spec.paper}; {how}.",
    ]


def networks(records: Sequence[Record]) -> str:
    """ "0.7 to 4.1 M trained parameters", of the networks of these records."""
    sizes = sorted(record["parameters"] for record in records if record.get("parameters"))
    if not sizes:
        return "size not recorded"
    ends = dict.fromkeys(
        f"{size / 1e6:.2g} M" if size >= 1e5 else f"{size / 1e3:.2g} k" for size in (sizes[0], sizes[-1])
    )
    return f"{' to '.join(ends)} trained parameters"


def details(
    grid: Grid, table: Table, by_data: Mapping[str, Finished], columns: Sequence[Column], data: str
) -> list[str]:
    """Images, seeds, protocols and what is missing, one sentence an element."""
    runs = [run for row in table.rows for run in row.runs]
    sizes = "; ".join(sorted({images(run.experiment) for run in runs}))
    seeds = sorted({run.experiment.seed for run in runs if run.digest in by_data[data]})
    lines = [f"{sizes[:1].upper()}{sizes[1:]}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}."]
    if any(column.spec.metric.startswith("usage") for column in columns):
        lines.append(
            '"x of y": usage, and what as many tokens would use if drawn evenly (left out from ten tokens a code on).'
        )
    measured = [f"{column.spec.head}: {column.protocol}" for column in columns if column.protocol]
    lines.append(f"Protocols of ours: {'; '.join(measured)}.")
    if samplers := sorted({one for column in columns for one in column.samplers}):
        lines.append(f"Images are drawn by {', '.join(samplers)}, as each row's recipe says.")
    lines += [f"{warning}." for column in columns for warning in column.warnings]
    if absent := [column.spec for column in columns if not column.protocol]:
        named = (f"{column.head} (needs {column.needs})" if column.needs else column.head for column in absent)
        lines.append(f"Not measured: {', '.join(named)}.")
    return lines + gaps(runs, by_data, data)


def gaps(runs: Sequence[Run], by_data: Mapping[str, Finished], data: str) -> list[str]:
    """Why cells are empty: their runs are finished on other data, or on none."""
    empty = [run.digest for run in runs if run.digest not in by_data[data]]
    others = sorted(other for other, finished in by_data.items() if not finished.keys().isdisjoint(empty))
    missing = [run for run in runs if all(run.digest not in finished for finished in by_data.values())]
    lines = []
    if others:
        lines.append(
            f"{len(empty) - len(missing)} of {len(runs)} runs are of other data ({', '.join(others)}) and stand in a "
            "table of their own; their cells are empty here."
        )
    if missing:
        time = cost(missing, by_data[data].values())
        lines.append(f"{len(missing)} of {len(runs)} runs are missing{time}; their cells are empty.")
    return lines


def origins(records: Sequence[Record]) -> tuple[str, str]:
    """A sentence about the commits of the records, and a warning where the code that decides numbers differs.

    Commits of the same code stand together; code that cannot be looked up counts as that of its commit alone.
    """
    versions: dict[str, set[str]] = {}
    is_comparable = True
    for record in records:
        code = code_version.of_record(record)
        is_comparable &= bool(code)
        versions.setdefault(code or commit_of(record), set()).add(commit_of(record))
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
