"""The strip of originals and reconstructions: whose weights are here, the same images in every row, numbers beside."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from sweeps import reconstructions
from sweeps.grid import SWEEPS, Run, load_grid
from sweeps.reconstructions import draw, reconstructed, strips_of


class Darker(nn.Module):
    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(reconstruction=images - 0.5)


@pytest.fixture
def tokenizers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Rows whose label begins so have weights, of their last seed alone."""
    monkeypatch.setattr(
        reconstructions, "first_images", lambda _: torch.linspace(-1, 1, 8)[:, None, None, None].expand(-1, 3, 4, 4)
    )

    def trained(name: str) -> None:
        def tokenizer_of(run: Run) -> nn.Module | None:
            return Darker() if run.label.startswith(name) and run.experiment.seed == 1 else None

        monkeypatch.setattr(reconstructions, "tokenizer_of", tokenizer_of)

    return trained


def test_rows_with_weights_stand_below_the_originals(
    tokenizers: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizers("LC")
    table = load_grid(SWEEPS / "ablation_codebook.yaml", "reduced", "0,1").tables[0]
    (row,) = (row for row in table.rows if row.heads == {"quantizer": "LC", "K": 100000})
    record = {"metrics": {"rfid": 12.0, "usage/val": 97.0}, "protocols": {"rfid": "rfid/efficientnet-lite2@64px/n1"}}
    strips = strips_of(table, ["*K=100,000"], {run.digest: record for run in row.runs}, "reduced", "x")
    assert [name for name, _, _ in strips] == ["original", "LC, K 100,000"]
    assert "rFD (Lite2) 12.00 ± 0.00" in strips[1][1] and "97.0" in strips[1][1]
    assert torch.allclose(strips[1][2], (strips[0][2] - 0.25).clamp(0, 1))
    assert "left out: VQ K=100,000: neither" in capsys.readouterr().out
    figure = draw(strips, "a title")
    assert len(figure.axes) == 2 and {"original", "LC, K 100,000", "a title"} <= {
        text.get_text() for text in figure.texts
    }


def test_the_picture_and_a_dry_run(tokenizers: Callable[[str], None], tmp_path: Path, capsys) -> None:
    tokenizers("LC K=100,000")
    path = tmp_path / "tables" / "ablation_codebook_codebook_reconstructions_quick_shapes.png"
    command = [
        str(SWEEPS / "ablation_codebook.yaml"),
        "--data",
        "shapes",
        "--output-dir",
        str(tmp_path),
        "--seeds",
        "1,",
    ]
    assert reconstructions.main([*command, "--dry-run"]) == 0 and not path.exists()
    assert f"would be written: {path}, of original, LC, K 100,000\n" in capsys.readouterr().out
    assert reconstructions.main(command) == 0 and path.read_bytes().startswith(b"\x89PNG")


def test_no_weights_is_one_clear_error(tokenizers: Callable[[str], None], tmp_path: Path, capsys) -> None:
    tokenizers("nothing")
    path = str(SWEEPS / "ablation_codebook.yaml")
    with pytest.raises(SystemExit):
        reconstructions.main([path, "--data", "shapes", "--output-dir", str(tmp_path)])
    assert "no trained tokenizer of scale quick" in capsys.readouterr().err


def test_values_are_those_of_a_picture() -> None:
    assert reconstructed(Darker(), torch.full((1, 3, 2, 2), -0.9)).max() == 0
