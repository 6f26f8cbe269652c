"""Sweep files become the right experiments, and mistakes in them are named before anything is trained."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from conftest import load_once

from experiments.config.compose import RECIPES, load_experiment
from experiments.config.values import read_yaml
from experiments.pipeline.codebooks.extraction import patch_features
from lightning_modules.networks import load_encoder
from lightning_modules.quantizers import CodebookSource, LargeCodebookConfig
from sweeps import grid as grid_module
from sweeps.grid import SWEEPS, load_grid, parse_seeds, scale_names
from sweeps.schema import ScaleSpec

SWEEP_FILES = sorted(
    path
    for path in SWEEPS.rglob("*.yaml")
    if path.parent.name not in ("scales", "records") and not path.name.startswith(("search_", "claims"))
)

SWEEP = """
title: A test
tables:
  - id: one
    title: Quantizers
    paper: "a paper, Table 1"
    row_heads: [quantizer, K]
    columns:
      - {metric: usage/epoch, head: util %, format: .1f}
      - {metric: rfid, head: rFID}
    cells:
      - row: {quantizer: other, K: 7}
        paper: {rfid: 9.5}
      - experiment: vqgan
        row: {quantizer: VQ, K: 1024}
        set: {model.codebook_size: 1024, model.code_dim: 16}
        paper: {usage/epoch: 3.4}
      - experiment: vqgan_fc
        row: {quantizer: FC, K: 50000}
        set: {model.codebook_size: 50000}
        scales: [reduced, paper]
"""


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SWEEP, with experiment files of its own so that a change of a recipe does not change the test."""
    for name in ("vqgan", "vqgan_fc"):
        text = f"model:\n  name: {name}\ndata:\n  name: cifar10\n  train_size: 77\n"
        (tmp_path / f"{name}_cifar10.yaml").write_text(text)
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_layers_win_in_order(sweep_file: Path) -> None:
    (table,) = load_grid(sweep_file, "quick", "0,3", ["data.val_size=50"]).tables
    reference, vq = table.rows  # the third cell is for other scales
    assert reference.runs == () and reference.cell.paper == {"rfid": 9.5}
    assert [run.experiment.seed for run in vq.runs] == [0, 3]
    experiment = vq.runs[0].experiment
    assert (experiment.model.codebook_size, experiment.model.code_dim) == (1024, 16)  # the row's
    quick = read_yaml(SWEEPS / "scales" / "quick.yaml")["overrides"]
    assert experiment.data.train_size == quick["data.train_size"] != 77  # the scale's wins over the experiment file's
    assert experiment.data.val_size == 50  # the command line's wins over the scale's 1,000
    assert load_grid(sweep_file, "reduced").tables[0].rows[1].runs[0].experiment.data.train_size == 77


def test_a_row_may_take_another_quantizer(sweep_file: Path) -> None:
    recipe = sweep_file.with_name("vqgan_fc_cifar10.yaml")
    recipe.write_text(recipe.read_text().replace("name: vqgan_fc", "name: vqgan_fc\n  quantizer: {l2_norm: true}"))
    cell = "set: {model.codebook_size: 50000}"
    levels = "set: {model.quantizer.name: fsq, model.codebook_size: 240, model.code_dim: 3}"
    sweep_file.write_text(SWEEP.replace(cell, levels))
    (run,) = load_grid(sweep_file, "reduced", "1").tables[0].rows[2].runs
    assert run.experiment.model.quantizer.name == "fsq"
    sweep_file.write_text(SWEEP.replace(cell, levels.replace("240", "256")))
    with pytest.raises(ValueError, match=r"sweep\.yaml: table one, row 'FC K=50,000' .*codebook_size=256"):
        load_grid(sweep_file, "reduced")


def test_identical_cells_share_their_digest(sweep_file: Path) -> None:
    other = sweep_file.with_name("other.yaml")
    other.write_text(SWEEP.replace("quantizer", "method").replace("A test", "Another"))
    first, second = (load_grid(path, "reduced", "1").runs for path in (sweep_file, other))
    assert [run.digest for run in first] == [run.digest for run in second]
    assert len({run.digest for run in first}) == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("cells:", "cellz:", ["unknown key", "cellz", "'cells'"]),
        ("        set: {model.codebook_size: 50000}", "        sett: {a: 1}", ["sett", "'set'"]),
        ("model.codebook_size: 50000", "model.codebook_sice: 5", ["FC K=50,000", "codebook_sice", "codebook_size"]),
        ("model.codebook_size: 50000", "model.codebook_size: 0", ["FC K=50,000", "codebook_size=0"]),
        ("model.codebook_size: 50000", "model.codebook_size: many", ["FC K=50,000", "model.codebook_size"]),
        ("usage/epoch: 3.4", "usage/epok: 3.4", ["cell 2", "usage/epok", "'usage/epoch'"]),
        ("row: {quantizer: VQ, K: 1024}", "row: {quantizer: VQ}", ["cell 2", "'K'"]),
        ("scales: [reduced, paper]", "scales: [reducd]", ["reducd", "'reduced'"]),
        ("format: .1f", "format: .1g?", ["usage/epoch", "format"]),
        ("experiment: vqgan_fc", "experiment: vqgan_fd", ["FC K=50,000", "vqgan_fd_cifar10.yaml", "did you mean"]),
        ("title: Quantizers", "", ["title"]),
    ],
)
def test_mistakes_are_named(sweep_file: Path, old: str, new: str, words: list[str]) -> None:
    assert old in SWEEP
    sweep_file.write_text(SWEEP.replace(old, new))
    with pytest.raises(ValueError) as error:
        load_grid(sweep_file, "reduced")
    for word in ["sweep.yaml", *words]:
        assert word in str(error.value)


def test_a_row_has_other_values_and_another_data_set_where_the_papers_data_is(sweep_file: Path) -> None:
    for dataset in ("imagenet", "ffhq"):
        text = f"model:\n  name: vqgan_fc\ndata:\n  name: image_folder\n  dataset: {dataset}\n"
        (sweep_file.parent / f"vqgan_fc_{dataset}.yaml").write_text(text)
    (sweep_file.parent / "vqgan_imagenet.yaml").write_text("model:\n  name: vqgan\ndata:\n  name: image_folder\n")
    old = "set: {model.codebook_size: 50000}\n        scales: [reduced, paper]"
    assert old in SWEEP
    new = "dataset: ffhq\n        set: {model.codebook_size: 50000}\n        small: {model.codebook_size: 50}"
    sweep_file.write_text(SWEEP.replace(old, new))
    small = load_grid(sweep_file, "reduced").tables[0].rows[2].runs[0]
    large = load_grid(sweep_file, "paper").tables[0].rows[2].runs[0]
    assert (small.name, small.experiment.model.codebook_size) == ("vqgan_fc_cifar10", 50)
    assert (large.name, large.experiment.model.codebook_size) == ("vqgan_fc_ffhq", 50000)
    assert large.experiment.data.dataset == "ffhq"  # type: ignore[attr-defined]


def test_rows_of_other_data_sets_are_other_experiments() -> None:
    """Else a table would show the number of one data set in the row of another."""
    digests = {run.digest for run in load_grid(SWEEPS / "vit_vqgan/table3.yaml", "paper").runs}
    assert len(digests) == 3


def test_unknown_scale_and_seeds_are_named(sweep_file: Path) -> None:
    with pytest.raises(ValueError, match=r"SCALE=quik .* 'quick'"):
        load_grid(sweep_file, "quik")
    with pytest.raises(ValueError, match="SEEDS=a,b"):
        load_grid(sweep_file, "quick", "a,b")


def test_a_key_of_a_scale_that_no_model_has_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes the keys that it has; one that none has is a mistake in the file."""
    spec = ScaleSpec("cifar10", overrides={"model.loss.perceptuel": 0.0})
    monkeypatch.setattr(grid_module, "read_spec", lambda *_: spec)
    with pytest.raises(
        ValueError, match=r"quick.yaml: overrides: .* 'model.loss.perceptuel'; did you mean 'model.loss.per"
    ):
        grid_module.load_scale("quick")


@pytest.mark.parametrize("upstream", ["upstream: 32", "upstream.recipe: 3", "upstream.recipe: ''", "upstream.seed: 1"])
def test_what_stands_on_no_recipe_is_named(upstream: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP.replace("set: {model.codebook_size: 1024, model.code_dim: 16}", f"set: {{{upstream}}}"))
    with pytest.raises(ValueError, match=r"sweep.yaml: table one, row 'VQ K=1,024' .*upstream.recipe must name"):
        load_grid(path, "quick")


def test_seeds_are_a_list_or_a_count() -> None:
    assert parse_seeds("0,2") == (0, 2)
    assert parse_seeds("3") == (0, 1, 2)
    assert parse_seeds("0") == (0,)
    assert parse_seeds("5,") == (5,)
    with pytest.raises(ValueError):
        parse_seeds("1,1")


@pytest.mark.parametrize("scale", scale_names())
@pytest.mark.parametrize("path", SWEEP_FILES, ids=lambda path: path.stem)
def test_every_sweep_loads_at_every_scale(path: Path, scale: str) -> None:
    grid = load_grid(path, scale)
    assert grid.runs
    digests = [run.digest for table in grid.tables for row in table.rows for run in row.runs if not row.cell.use]
    assert len(set(digests)) == len(digests), "two rows of the sweep are the same experiment"


def test_paper_table_shares_the_cells_of_the_ablation() -> None:
    ablation, table = (load_grid(SWEEPS / name, "quick") for name in ("ablation_codebook.yaml", "vqgan_lc/table2.yaml"))
    assert {run.digest for run in table.runs} <= {run.digest for run in ablation.runs}
    assert table.name == "vqgan_lc_table2"


def test_feature_dim_is_what_the_encoder_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every LC recipe, and of every LC cell at paper scale. timm's encoders without weights, on the meta device."""
    experiments = {path.name: load_experiment(path) for path in RECIPES.glob("vqgan_lc*.yaml")}
    grids = [load_grid(path, "paper") for path in SWEEP_FILES if "experiment: vqgan_lc" in path.read_text()]
    grids.append(load_grid(SWEEPS / "vqgan_lc/table6.yaml", "reduced"))
    experiments |= {f"{grid.name} {grid.scale} {run.label}": run.experiment for grid in grids for run in grid.runs}
    monkeypatch.setattr(timm, "create_model", partial(create_without_weights, timm.create_model))
    widths: dict[str, int] = {}
    for where, experiment in experiments.items():
        quantizer = getattr(experiment.model, "quantizer", None)
        if isinstance(quantizer, LargeCodebookConfig) and quantizer.source.method != "normal":
            key = str(vars(quantizer.source) | {"method": "", "num_images": 0, "seed": 0})
            if key not in widths:
                widths[key] = width(quantizer.source)
            assert quantizer.feature_dim == widths[key], where
    assert len(widths) >= 5, "ViT-L, ViT-B, ResNet-50 and two stages of EfficientNet-Lite0"


def create_without_weights(create_model, name, pretrained, **options):  # type: ignore[no-untyped-def]
    return create_model(name, pretrained=False, **options)


def width(source: CodebookSource) -> int:
    size = source.encoder_image_size
    if not source.encoder.startswith("timm:"):
        return patch_features(load_once(source.encoder, size), torch.zeros(1, 3, size, size), source).shape[-1]
    with torch.device("meta"):
        encoder = load_encoder(source.encoder, size)
        return patch_features(encoder, torch.zeros(1, 3, size, size), source).shape[-1]
