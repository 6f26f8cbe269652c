"""A sheet as Markdown, LaTeX (booktabs), PNG and plain text."""

import io
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from experiments.runtime.files import replacing
from sweeps.sheet import Sheet

MAX_PIXELS, MAX_BYTES = 1600, 80_000  # of a picture: the longer side, and its file

LATEX = {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {"±": r"$\pm$", "†": r"$^\dagger$", "<": "$<$", ">": "$>$"}


def write_sheet(sheet: Sheet, stem: Path) -> list[Path]:
    """Writes <stem>.md, .tex and .png, each whole or not at all; gives their paths."""
    contents: dict[str, str | Figure] = {"md": markdown(sheet), "tex": latex(sheet), "png": draw(sheet)}
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in contents]
    for path, content in zip(paths, contents.values(), strict=True):
        replace_file(path, content)
    return paths


def replace_file(path: Path, content: str | Figure) -> None:
    """Atomically, so that a full disk leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, concurrent_writers=True) as file:
        file.write(content.encode() if isinstance(content, str) else png(content))


def png(figure: Figure) -> bytes:
    """With a palette, and no larger than a page needs: fewer colours, then fewer pixels, until it is small."""
    dpi = min(160.0, MAX_PIXELS / max(figure.get_size_inches()))
    while True:
        figure.savefig(raw := io.BytesIO(), format="png", dpi=dpi)
        image = Image.open(raw).convert("RGB")
        for colors in (128, 48):
            image.quantize(colors, dither=Image.Dither.NONE).save(small := io.BytesIO(), "PNG", optimize=True)
            if small.tell() <= MAX_BYTES or (dpi < 40 and colors == 48):
                return small.getvalue()
        dpi *= 0.85


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

    heads = [f"{head}<br>{sub}" if sub else head for head, subs in sheet.groups for sub in subs]
    rule = ["---"] * sheet.num_row_heads + ["---:"] * (len(heads) - sheet.num_row_heads)
    parts = [f"**{sheet.title}**", ""]
    if sheet.warning:
        parts += [f"> **{sheet.warning}**", ""]
    rows = [
        [f"**{cell}**" if (i, j) in sheet.best else cell for j, cell in enumerate(row)]
        for i, row in enumerate(sheet.body)
    ]
    body = with_breaks(sheet, [line(row) for row in rows], line([""] * len(heads)))
    parts += [line(heads), line(rule), *body, "", " ".join([*sheet.caption, *sheet.notes])]
    if sheet.folded is not None:
        inside = markdown(sheet.folded).partition("\n\n")[2]
        parts += ["", f"<details><summary>{sheet.folded.title}</summary>", "", inside.rstrip(), "", "</details>"]
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
        cells = (
            rf"\textbf{{{escape(cell)}}}" if (number, j) in sheet.best else escape(cell) for j, cell in enumerate(row)
        )
        lines.append(" & ".join(cells) + r" \\")
    warning = f"\\textbf{{{escape(sheet.warning)}}} " if sheet.warning else ""
    caption = f"{escape(sheet.title)}. {warning}{escape(' '.join(sheet.caption))}"
    begin = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\resizebox{\linewidth}{!}{%"]
    heads = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(top) + r" \\"]
    heads += ["".join(rules)] * bool(rules) + [" & ".join(sub) + r" \\", r"\midrule"]
    end = [r"\bottomrule", r"\end{tabular}%", "}", r"\end{table}", ""]
    return "\n".join([*begin, *heads, *lines, *end])


def plain(sheet: Sheet) -> str:
    """For a terminal: aligned columns under two lines of heads."""
    tops = [head if index == 0 else "" for head, subs in sheet.groups for index in range(len(subs))]
    lines = [tops, [sub for _, subs in sheet.groups for sub in subs], *sheet.body]
    aligned = []
    for index, column in enumerate(zip(*lines, strict=True)):
        width = max(map(len, column))
        aligned.append([cell.ljust(width) if index < sheet.num_row_heads else cell.rjust(width) for cell in column])
    top, sub, *rows = ("  ".join(cells) for cells in zip(*aligned, strict=True))
    warning = [f"!!! {sheet.warning}"] if sheet.warning else []
    body = with_breaks(sheet, rows, "-" * len(top))
    return "\n".join(
        [sheet.title, *warning, top, sub, *body, textwrap.fill(" ".join([*sheet.caption, *sheet.notes]), 118)]
    )


def draw(sheet: Sheet) -> Figure:
    """The table as a figure: grouped heads, right-aligned numbers, caption below."""
    em, row_height = 0.082, 0.25  # inches: width of a character at 9 points, height of a row
    subs = [sub for _, group in sheet.groups for sub in group]
    widths = [max(map(len, column)) * em + 0.18 for column in zip(subs, *sheet.body, strict=True)]
    for head, group, at, _ in spans(sheet):  # a head may be wider than its columns together
        missing = max(0.0, len(head) * em + 0.18 - sum(widths[at]))
        widths[at] = [width + missing / len(group) for width in widths[at]]
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    width = max(edges[-1], 8.0)
    title = textwrap.wrap(sheet.title, int(width / 0.092))
    warning = textwrap.wrap(sheet.warning, int(width / 0.085))
    caption = [line for text in sheet.caption for line in textwrap.wrap(text, int(width / 0.05))]
    height = row_height * (len(title) + len(warning) + 2 + len(sheet.body)) + 0.16 * len(caption) + 0.45
    figure = Figure((width + 0.3, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(-0.15, width + 0.15)
    axes.set_ylim(height, 0)  # inches from the top

    def write(x: float, text: str, align: str = "left", **style: Any) -> None:
        axes.text(x, y + row_height / 2, text, va="center", ha=align, **style)

    def rule(lw: float, color: str = "black") -> None:
        axes.plot((0, edges[-1]), (y, y), color=color, lw=lw)

    y = 0.1
    for text in [*title, *warning]:
        write(0, text, size=11, weight="bold", color="#b00020" if text in warning else "black")
        y += row_height
    y += 0.06
    rule(1.2)
    for head, _, at, is_row_head in spans(sheet):
        left, right = edges[at.start], edges[at.stop]
        if is_row_head:
            write(left + 0.05, head, size=9, weight="bold")
        else:
            write((left + right) / 2, head, "center", size=9, weight="bold")
            axes.plot((left + 0.08, right - 0.02), (y + row_height,) * 2, color="black", lw=0.5)
    y += row_height
    for x, text in zip(edges[1:], subs, strict=True):
        write(x - 0.06, text, "right", size=8, color="#444444")
    y += row_height
    rule(0.8)
    for number, row in enumerate(sheet.body):
        if number in sheet.breaks:
            rule(1.2)
        elif number in sheet.rules:
            rule(0.5, "#888888")
        for index, (text, sub) in enumerate(zip(row, subs, strict=True)):
            if index < sheet.num_row_heads:
                write(edges[index] + 0.05, text, size=9)
            else:
                color = {"paper": "#555555", "diff": "#888888"}.get(sub, "black")
                weight = "bold" if (number, index) in sheet.best else "normal"
                write(edges[index + 1] - 0.06, text, "right", size=9, color=color, weight=weight)
        y += row_height
    rule(1.2)
    axes.text(0, y + 0.08, "\n".join(caption), va="top", size=7, color="#333333", linespacing=1.3)
    return figure
