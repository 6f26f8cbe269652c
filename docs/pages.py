"""Hook of mkdocs.yml: pages of the site whose sources are not Markdown files of docs/."""

import re
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

PROJECT = Path(__file__).parents[1]
MOVED = {"index.md": "README.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
NOTEBOOK = "tokenizers"


def on_files(files: Files, config: Any) -> Files:
    for page, source in MOVED.items():
        text = (PROJECT / source).read_text().replace("](docs/", "](").replace('src="docs/', 'src="')
        files.append(File.generated(config, page, content=re.sub(r"\[([^\]]*)\]\(LICENSE\)", r"\1", text)))
    files.append(File.generated(config, f"{NOTEBOOK}.md", content=notebook(PROJECT / f"docs/{NOTEBOOK}.ipynb")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to the pages above lead to them; of links to other files of the repository the words are left.

    A title in bold, as tables have it, is a heading.
    """
    markdown = re.sub(r"\A\*\*(.+)\*\*\n", r"# \1\n", markdown)
    markdown = re.sub(r"\]\(\.\./(CONTRIBUTING|CHANGELOG)\.md", r"](\1.md", markdown)
    markdown = markdown.replace(f"({NOTEBOOK}.ipynb)", f"({NOTEBOOK}.md)")
    return re.sub(r"\[([^\]]*)\]\(\.\./[^)]*\)", r"\1", markdown)


def notebook(path: Path) -> str:
    """The cells of an executed notebook as Markdown, pictures inside."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if image := data.get("image/jpeg"):
                width = output.metadata.get("image/jpeg", {}).get("width", "")
                parts.append(f'<img alt="" width="{width}" src="data:image/jpeg;base64,{"".join(image.split())}">')
            elif text := output.get("text") or data.get("text/plain"):
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
