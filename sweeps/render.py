"""A sheet as Markdown, LaTeX (booktabs), PNG and plain text."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from experiments.runtime.files import replacing
from sweeps.sheet import Sheet

LATEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "<": "$<$",
    ">": "$>$",
}


def write_sheet(sheet: Sheet, stem: Path) -> list[Path]:
    """Writes <stem>.md, .tex and .png, each whole or not at all; gives their paths."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    figure = draw(sheet)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("md", "tex", "png")]
    for path, text in zip(paths, (markdown(sheet), latex(sheet)), strict=False):
        replace_file(path, text)
    replace_file(paths[-1], figure)
    return paths


def replace_file(path: Path, content: str | Figure) -> None:
    """Atomically, so that a full disk leaves the old file."""
    with replacing(path, concurrent_writers=True) as file:
        if isinstance(content, str):
            file.write(content.encode())
        else:
            content.savefig(file, format="png", dpi=160)


def flat_heads(sheet: Sheet, joint: str) -> list[str]:
    return [f"{head}{joint}{sub}" if sub else head for head, subs in sheet.groups for sub in subs]


def spans(sheet: Sheet) -> Iterator[tuple[str, list[str], slice, bool]]:
    """Of each group: its head, the heads of its columns, where these are, and whether they are the row's head."""
    start = 0
    for index, (head, subs) in enumerate(sheet.groups):
        yield head, subs, slice(start, start + len(subs)), index < sheet.num_row_heads
        start += len(subs)


def with_breaks(sheet: Sheet, lines: list[str], mark: str) -> list[str]:
    """The body's lines with `mark` above each row that the sheet sets apart."""
    return [text for i, row in enumerate(lines) for text in ([mark, row] if i in sheet.breaks else [row])]


def markdown(sheet: Sheet) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

    heads = flat_heads(sheet, "<br>")
    rule = ["---"] * sheet.num_row_heads + ["---:"] * (len(heads) - sheet.num_row_heads)
    parts = [f"**{sheet.title}**", ""]
    if sheet.warning:
        parts += [f"> **{sheet.warning}**", ""]
    body = with_breaks(sheet, [line(row) for row in sheet.body], line([""] * len(heads)))
    parts += [line(heads), line(rule), *body, "", " ".join(sheet.caption)]
    return "\n".join(parts) + "\n"


def escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def latex(sheet: Sheet) -> str:
    """A complete `table` environment; needs \\usepackage{booktabs} and \\usepackage{graphicx}."""
    columns = "l" * sheet.num_row_heads + "r" * (len(sheet.body[0]) - sheet.num_row_heads)
    top, rules, sub = [], [], []
    for head, subs, at, _ in spans(sheet):
        top.append(escape(head) if len(subs) == 1 else f"\\multicolumn{{{len(subs)}}}{{c}}{{{escape(head)}}}")
        if len(subs) > 1:
            rules.append(f"\\cmidrule(lr){{{at.start + 1}-{at.stop}}}")
        sub += [escape(text) for text in subs]
    lines = []
    for number, row in enumerate(sheet.body):
        if number in sheet.breaks:
            lines.append(r"\midrule[\heavyrulewidth]")
        elif number in sheet.rules:
            lines.append(r"\midrule")
        lines.append(" & ".join(escape(cell) for cell in row) + r" \\")
    warning = f"\\textbf{{{escape(sheet.warning)}}} " if sheet.warning else ""
    caption = f"{escape(sheet.title)}. {warning}{escape(' '.join(sheet.caption))}"
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\resizebox{\linewidth}{!}{%"]
    heads = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(top) + r" \\"]
    heads += ["".join(rules)] * bool(rules) + [" & ".join(sub) + r" \\", r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}%", "}", r"\end{table}", ""]
    return "\n".join([*begin, *heads, *lines, *end])


def plain(sheet: Sheet) -> str:
    """For a terminal: two head lines and aligned columns."""
    subs = [sub for _, group in sheet.groups for sub in group]
    widths = [max(len(row[i]) for row in [subs, *sheet.body]) for i in range(len(subs))]
    for head, group, at, _ in spans(sheet):  # a head may be wider than its columns together
        widths[at.stop - 1] += max(0, len(head) - sum(widths[at]) - 2 * (len(group) - 1))

    def line(cells: list[str]) -> str:
        n = sheet.num_row_heads
        padded = (c.ljust(w) if i < n else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
        return "  ".join(padded)

    head_line = ""
    for head, group, at, is_row_head in spans(sheet):
        width = sum(widths[at]) + 2 * (len(group) - 1)
        head_line += (head.ljust(width) if is_row_head else head.center(width)) + "  "
    warning = [f"!!! {sheet.warning}"] if sheet.warning else []
    note = textwrap.fill(" ".join(sheet.caption), 118)
    body = with_breaks(sheet, [line(row) for row in sheet.body], "-" * len(line(subs)))
    return "\n".join([sheet.title, *warning, head_line.rstrip(), line(subs), *body, note])


def draw(sheet: Sheet) -> Figure:
    """The table as a figure: grouped heads, right-aligned numbers, caption below."""
    em, row_height = 0.082, 0.25  # inches: width of a character at 9 points, height of a row
    subs = [sub for _, group in sheet.groups for sub in group]
    widths = [max(len(text) for text in column) * em + 0.18 for column in zip(subs, *sheet.body, strict=True)]
    for head, group, at, _ in spans(sheet):
        missing = max(0.0, len(head) * em + 0.18 - sum(widths[at]))
        widths[at] = [width + missing / len(group) for width in widths[at]]
    width = max(sum(widths), 6.0)
    caption = textwrap.wrap(" ".join(sheet.caption), int(width / 0.056))
    warning = textwrap.wrap(sheet.warning, int(width / 0.085))
    title = textwrap.wrap(sheet.title, int(width / 0.092)) + warning
    height = row_height * (len(title) + 2 + len(sheet.body)) + 0.16 * len(caption) + 0.45
    figure = Figure((width + 0.3, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.15, width + 0.15)
    axes.set_ylim(height, 0)  # inches from the top

    y = 0.1
    for number, text in enumerate(title):
        color = "#b00020" if number >= len(title) - len(warning) else "black"
        axes.text(0, y + row_height / 2, text, va="center", size=11, weight="bold", color=color)
        y += row_height
    y += 0.06
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    axes.plot((0, edges[-1]), (y, y), color="black", lw=1.2)
    for head, _, at, is_row_head in spans(sheet):
        left, right = edges[at.start], edges[at.stop]
        x, align = (left + 0.05, "left") if is_row_head else ((left + right) / 2, "center")
        axes.text(x, y + row_height / 2, head, va="center", ha=align, size=9, weight="bold")
        if not is_row_head:
            axes.plot((left + 0.08, right - 0.02), (y + row_height,) * 2, color="black", lw=0.5)
    y += row_height
    for x, text in zip(edges[1:], subs, strict=True):
        axes.text(x - 0.06, y + row_height / 2, text, va="center", ha="right", size=8, color="#444444")
    y += row_height
    axes.plot((0, edges[-1]), (y, y), color="black", lw=0.8)
    for number, row in enumerate(sheet.body):
        if number in sheet.breaks:
            axes.plot((0, edges[-1]), (y, y), color="black", lw=1.2)
        elif number in sheet.rules:
            axes.plot((0, edges[-1]), (y, y), color="#888888", lw=0.5)
        for index, (text, sub) in enumerate(zip(row, subs, strict=True)):
            is_row_head = index < sheet.num_row_heads
            x, align = (edges[index] + 0.05, "left") if is_row_head else (edges[index + 1] - 0.06, "right")
            color = {"paper": "#555555", "diff": "#888888"}.get(sub, "black")
            weight = "bold" if sub == "ours" else "normal"
            axes.text(x, y + row_height / 2, text, va="center", ha=align, size=9, color=color, weight=weight)
        y += row_height
    axes.plot((0, edges[-1]), (y, y), color="black", lw=1.2)
    y += 0.16
    for text in caption:
        axes.text(0, y, text, va="center", size=7.5, color="#333333")
        y += 0.16
    return figure
