"""docs/tokenizers.ipynb runs, on few images and steps, and holds the outputs of a longer run."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

PROJECT = Path(__file__).parents[1]
NOTEBOOK = PROJECT / "docs/tokenizers.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"STEPS": "2", "IMAGES": "64", "DATA": "shapes", "OUT": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(PROJECT)}}).execute()


def test_its_outputs_are_there_and_small() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) >= 3
    assert all(output.output_type != "error" for output in outputs)
    assert NOTEBOOK.stat().st_size < 150_000
