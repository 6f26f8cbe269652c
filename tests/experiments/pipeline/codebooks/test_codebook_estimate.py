"""The estimate of a build: its bytes against the files of a real one, its seconds in proportion."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TinyExperiment

from experiments import build_codebook
from experiments.pipeline.codebooks.estimate import Estimate, estimate, words
from experiments.pipeline.codebooks.extraction import features_for

SOURCE = "model.quantizer.source"
PAPER = Estimate(
    images=1_281_167,
    features=1_281_167 * 16,
    dims=768,
    codebook_size=100_000,
    images_per_second=100.0,
    pass_seconds=3600.0,
    passes=10,
    parts=1,
    free_bytes=10**12,
    device="cpu",
)


def test_bytes_are_those_of_the_files(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan_lc")
    guess, kept = estimate(experiment), features_for(experiment, "shapes")
    files = [kept.path, kept.path.with_name("labels.npy")]
    assert guess.features_bytes == sum(path.stat().st_size - 128 for path in files)  # a header has 128
    assert (guess.features, guess.dims) == kept.shape
    assert guess.images_per_second > 0 and guess.passes == 0, "nothing is clustered"


@pytest.mark.parametrize(("per_class", "parts"), [(True, 10), (False, 1)])
def test_it_is_extrapolated_to_other_numbers_of_images(tiny: TinyExperiment, per_class: bool, parts: int) -> None:
    keys = (f"{SOURCE}.method=kmeans", f"{SOURCE}.per_class={per_class}", f"{SOURCE}.iterations=3")
    guess = estimate(tiny("vqgan_lc", *keys), 4_000_000)
    assert (guess.features, guess.passes, guess.parts) == (4_000_000 * 16, 3, parts)
    assert guess.pass_seconds > 1, "64 million features"


def test_the_paper_fits_in_16_gib() -> None:
    assert PAPER.features_bytes == pytest.approx(63.1e9, rel=1e-3)
    assert PAPER.memory_bytes < 4e9, "with room for the encoder"
    text = str(PAPER)
    assert "extraction   3.6 h" in text and "clustering   10.0 h: 10 passes of 60.0 min" in text
    assert "64.36 GB (64,364,709,760 bytes), 1000.00 GB free: enough" in text
    assert "NOT ENOUGH" in str(replace(PAPER, free_bytes=64 * 10**9))


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (200, "3.3 min"), (7200, "2.0 h"), (1e6, "11.6 days")])
def test_words(seconds: float, text: str) -> None:
    assert words(seconds) == text


def test_the_command(
    tmp_path: Path, tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, out = tmp_path / "lc.yaml", tmp_path / "out"
    recipe.write_text(
        "data: {name: shapes, image_size: 16, val_size: 10}\n"
        "model:\n  name: vqgan_lc\n  codebook_size: 20\n"
        "  quantizer:\n    feature_dim: 40\n"
        "    source: {encoder: efficientnet-lite0, encoder_image_size: 32, stage: 3, pool: 1, num_images: 20}\n"
    )
    command = ["build_codebook", str(recipe), f"runtime.output_dir={out}", "runtime.accelerator=cpu", "--images", "900"]
    monkeypatch.setattr(sys, "argv", [*command, "--estimate"])
    build_codebook.main()
    assert "14,400 x 40 float32 of 900 images" in capsys.readouterr().out and not out.exists()
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="1"):
        build_codebook.main()
    assert capsys.readouterr().err == "error: --images 900: a positive number, and only with --estimate\n"
