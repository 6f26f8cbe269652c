"""Metrics of a table against one of its row heads, one line for each value of another."""

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from sweeps.grid import Table, show
from sweeps.render import replace_file
from sweeps.results import Found, measure


def write_plot(table: Table, found: Found, data_id: str, scale: str, path: Path) -> Path | None:
    """Ours as lines, spread over seeds as bars, the paper's utilisation dashed. None below two points."""
    spec = table.spec
    x, line = spec.plot.x, spec.plot.line
    columns = [column for column in spec.columns if column.metric in spec.plot.metrics]
    names = list(dict.fromkeys(row.heads[line] for row in table.rows))
    figure = Figure((5.2 * len(columns), 3.6), layout="constrained")
    num_points = 0
    for axes, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        for number, name in enumerate(names):
            color = f"C{number}"
            rows = sorted((row for row in table.rows if row.heads[line] == name), key=lambda row: row.heads[x])
            records = [[found[run.digest] for run in row.runs if run.digest in found] for row in rows]
            values = [(row.heads[x], measure(column, of)) for row, of in zip(rows, records, strict=True)]
            known = [(at, value.mean, value.std or 0.0) for at, value in values if value is not None]
            num_points += len(known)
            if known:
                at, mean, std = zip(*known, strict=True)
                label = f"{line} = {show(name)}" if isinstance(name, bool) else show(name)
                axes.errorbar(at, mean, std, marker="o", ms=4, capsize=2, color=color, label=label)
            paper = [(row.heads[x], row.paper[column.metric]) for row in rows if column.metric in row.paper]
            if paper and column.metric.startswith("usage"):
                axes.plot(*zip(*paper, strict=True), ls="--", lw=1, marker=".", alpha=0.6, color=color)
        counts = Counter(row.heads[x] for row in table.rows if row.runs)
        ticks = sorted(at for at in counts if not any(is_near(at, by) and counts[by] > counts[at] for by in counts))
        axes.set_xscale("log")
        axes.set_xticks(ticks, [show(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel(x)
        axes.set_ylabel(column.head)
        axes.grid(alpha=0.3)
        if column.metric.startswith("usage"):
            axes.set_ylim(-3, 103)
    if num_points < 2:
        return None
    handles, labels = max((axes.get_legend_handles_labels() for axes in figure.axes), key=lambda pair: len(pair[1]))
    figure.legend(handles, labels, loc="outside right center", fontsize=8)
    figure.suptitle(f"{data_id}, scale {scale}; dashed: the paper, on its own data", fontsize=9)
    replace_file(path, figure)
    return path


def is_near(a: float, b: float) -> bool:
    """Too near on a logarithmic axis for two labels: 1,000 and 1,024."""
    return 0.8 < a / b < 1.25
