"""Pictures of a table's records: against a row head, over epochs or blocks, or across its columns."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sweeps.grid import Table, show
from sweeps.heads import printed_label
from sweeps.measure import Finished, Measured, head_of, measure, records_of
from sweeps.render import replace_file
from sweeps.schema import ColumnSpec

MARKER = "o"  # of what was measured
COLORS = [f"C{number}" for number in range(10)] + ["#1b4f2f", "#6a3d9a", "#b15928", "#222222"]
APART = 1.025  # factor between neighbouring lines on a logarithmic axis, so that their bars stand side by side


def write_plot(table: Table, finished: Finished, data: str, scale: str, path: Path) -> Path | None:
    """Measured values as lines, spread over seeds as bars or bands, the paper's usage dashed. None below two points."""
    columns = [column for column in table.spec.columns if column.metric in table.spec.plot.metrics]
    figure = Figure(layout="constrained")
    labels = [printed_label(scale, row, finished, data) for row in table.rows]
    DRAW[table.spec.plot.kind](figure, table, finished, columns, labels)
    lines = [line for axes in figure.axes for line in axes.lines]
    if sum(np.size(line.get_xdata()) for line in lines if line.get_marker() == MARKER) < 2:
        return None
    handles, names = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    note = "; dashed: the paper, on its own data" if any(line.get_linestyle() == "--" for line in lines) else ""
    seeds = max(
        len(measured.values) for column in columns for row in table.rows if (measured := measure(column, row, finished))
    )
    spread = f"; bars: standard deviation, of up to {seeds} seeds" if seeds > 1 else ""
    figure.suptitle(f"{data}, scale {scale}{spread}{note}", fontsize=9)
    replace_file(path, figure)
    return path


def panels(figure: Figure, columns: Sequence[ColumnSpec], width: float) -> Iterable[tuple[Axes, ColumnSpec]]:
    """A pair of axes for each column, side by side."""
    figure.set_size_inches(width * len(columns), 3.6)
    return zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True)


def draw_rows(
    figure: Figure, table: Table, finished: Finished, columns: Sequence[ColumnSpec], _: Sequence[str]
) -> None:
    """Each metric against the row head `x`, one line for each value of `line`; without a number in `x`, a level."""
    x, line = table.spec.plot.x, table.spec.plot.line
    names = list(dict.fromkeys(row.heads[line] for row in table.rows if row.runs))
    for axes, column in panels(figure, columns, 5.2):
        for number, name in enumerate(names):
            color = COLORS[number % len(COLORS)]
            label = f"{line} = {show(name)}" if isinstance(name, bool) else show(name)
            rows = [row for row in table.rows if row.heads[line] == name and row.runs]
            for row in rows:
                if not is_number(row.heads[x]) and (level := measure(column, row, finished)) is not None:
                    axes.axhline(level.mean, ls=":", color=color, label=label)
            rows = sorted((row for row in rows if is_number(row.heads[x])), key=lambda row: row.heads[x])
            shift = APART ** (number - (len(names) - 1) / 2)
            draw_points(axes, [(row.heads[x] * shift, measure(column, row, finished)) for row in rows], color, label)
            paper = [(row.heads[x], row.cell.paper[column.metric]) for row in rows if column.metric in row.cell.paper]
            if paper and is_usage(column):
                axes.plot(*zip(*paper, strict=True), ls="--", lw=1, marker=".", alpha=0.6, color=color)
        counts = Counter(row.heads[x] for row in table.rows if row.runs and is_number(row.heads[x]))
        ticks = sorted(at for at in counts if not any(is_near(at, by) and counts[by] > counts[at] for by in counts))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [show(tick) for tick in ticks])
        if max(map(len, map(show, ticks))) > 5:
            axes.tick_params(axis="x", labelrotation=25)
        axes.minorticks_off()
        finish(axes, x, column, head_in(table, column, finished))


def draw_history(
    figure: Figure, table: Table, finished: Finished, columns: Sequence[ColumnSpec], labels: Sequence[str]
) -> None:
    """The history of each metric, one line a row: the mean over seeds, and a band from the lowest to the highest."""
    for axes, column in panels(figure, columns, 6.4):
        for number, row in enumerate(table.rows):
            histories = [record.get("history", {}).get(column.metric, []) for record in records_of(row, finished)]
            epochs = [[value * column.scale for value in values] for values in zip(*histories, strict=False)]
            if not epochs:
                continue
            at, color = range(1, len(epochs) + 1), COLORS[number % len(COLORS)]
            mean = [statistics.fmean(values) for values in epochs]
            axes.plot(at, mean, marker=MARKER, ms=3, color=color, label=labels[number])
            if len(histories) > 1:
                axes.fill_between(at, list(map(min, epochs)), list(map(max, epochs)), color=color, alpha=0.15, lw=0)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
        finish(axes, table.spec.plot.x, column, column.head)


def draw_columns(
    figure: Figure, table: Table, finished: Finished, columns: Sequence[ColumnSpec], labels: Sequence[str]
) -> None:
    """The metrics side by side, one line a row."""
    figure.set_size_inches(6.4, 3.6)
    axes = figure.subplots()
    rows = [(row, label) for row, label in zip(table.rows, labels, strict=True) if row.runs]
    for number, (row, label) in enumerate(rows):
        shift = 0.05 * (number - (len(rows) - 1) / 2)
        points = [(at + shift, measure(column, row, finished)) for at, column in enumerate(columns)]
        draw_points(axes, points, COLORS[number % len(COLORS)], label)
    axes.set_xticks(range(len(columns)), [column.head for column in columns])
    axes.set(
        xlabel=table.spec.plot.x, ylabel=", ".join(dict.fromkeys(c.metric.partition("/")[0].upper() for c in columns))
    )
    axes.set_title(table.spec.title, fontsize=9)
    axes.grid(alpha=0.3)


def draw_points(axes: Axes, points: Sequence[tuple[float, Measured | None]], color: str, label: str) -> None:
    """A line with its spread through what was measured."""
    measured = [(at, value.mean, value.std or 0.0) for at, value in points if value is not None]
    if measured:
        at, mean, std = zip(*measured, strict=True)
        axes.errorbar(at, mean, std, marker=MARKER, ms=4, capsize=2, color=color, label=label)


def is_usage(column: ColumnSpec) -> bool:
    return column.metric.startswith("usage")


def is_near(a: float, b: float) -> bool:
    """Too near on a logarithmic axis for two labels: 1,000 and 1,024."""
    return 0.8 < a / b < 1.25


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def head_in(table: Table, column: ColumnSpec, finished: Finished) -> str:
    """The column's head as the table has it, with the judge's name."""
    measured = (measure(column, row, finished) for row in table.rows)
    protocols = [protocol for one in measured if one for protocol in sorted(one.protocols)]
    return head_of(column.head, protocols[0]) if protocols else column.head


def finish(axes: Axes, x: str, column: ColumnSpec, head: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(head)
    axes.grid(alpha=0.3)
    if is_usage(column):
        axes.set_ylim(-3, 103)


DRAW = {"rows": draw_rows, "history": draw_history, "columns": draw_columns}
