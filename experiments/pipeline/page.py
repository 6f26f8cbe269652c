"""A page in one HTML file: sections of text, tables that sort on a click, and pictures; page.html is its form."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from torch import Tensor

from experiments.pipeline.sample_files import save_png
from experiments.runtime.files import replacing


@dataclass
class Image:
    """`uri`: a data URI, so that nothing is loaded; `zooms`: its size follows the page's slider."""

    uri: str
    words: str = ""
    zooms: bool = False


@dataclass
class Table:
    heads: list[str]
    rows: list[list[str | Image]]
    groups: list[tuple[str, int]] = field(default_factory=list)  # heads above those, each with its number of columns
    row_heads: int = 1  # columns at the left that name the row
    bold: frozenset[tuple[int, int]] = frozenset()  # (row, column)


@dataclass
class Section:
    title: str
    text: list[str] = field(default_factory=list)  # paragraphs
    table: Table | None = None
    images: list[Image] = field(default_factory=list)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Raises OSError that names the file when it cannot be written."""
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = environment.get_template("page.html").render(title=title, sections=sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def pixels(image: Tensor, words: str = "") -> Image:
    """Of (3, H, W) uint8."""
    save_png(image, content := io.BytesIO())
    return Image(uri(content.getvalue()), words, zooms=True)


def drawn(figure: Figure, words: str = "") -> Image:
    """Of a figure, as vectors whose letters are those of the reader's machine."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "page"}):
        figure.savefig(content := io.BytesIO(), format="svg", metadata={"Date": None})
    return Image(uri(content.getvalue(), "svg+xml"), words)
