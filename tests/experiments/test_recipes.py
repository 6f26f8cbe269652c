"""Every YAML of experiments/: it says what it is, it builds, and the CIFAR-10 ones train."""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from experiments.config.compose import load_experiment, read_recipe
from experiments.config.experiment import Experiment
from experiments.config.values import flatten
from experiments.pipeline.build import build_model, resolve_data
from experiments.pipeline.training import train
from lightning_modules import prior, token_classifier, tokenizer, vim
from lightning_modules.base import Setting
from lightning_modules.latent_prior import LatentPrior
from lightning_modules.token_classifier import TokenClassifier
from lightning_modules.tokenizer import TokenizerConfig
from sweeps.grid import load_grid
from sweeps.sheet import is_control

FOLDER = Path(__file__).parents[2] / "experiments"
ALL = sorted(FOLDER.glob("*.yaml"))
RECIPES = [path for path in ALL if "upstream:" not in path.read_text()]  # of tokenizers
DOWNSTREAM = [path for path in ALL if path not in RECIPES]
TRAINED = [
    path for path in RECIPES if path.stem.endswith("_cifar10")
]  # those of stage 2 are in tests/experiments/pipeline
PAPER_SCALE = [path for path in ALL if path.stem.endswith(("_imagenet", "_ffhq", "_celebahq"))]
OWN = sorted(FOLDER.glob("own_images_*.yaml"))  # for the user's photographs: rows of no paper
BUILT = [path for path in PAPER_SCALE if path in RECIPES]

named = pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)


def test_every_recipe_is_tested() -> None:
    assert TRAINED and BUILT and sorted(TRAINED + BUILT + OWN) == RECIPES
    assert len(DOWNSTREAM) >= 9 and all(path.stem.endswith("_cifar10") for path in set(ALL) - {*PAPER_SCALE, *OWN})


@named
def test_a_recipe_begins_with_its_source_and_its_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    comment = "\n".join(line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    assert "paper" in comment.lower() and f"experiments.train experiments/{path.name}" in comment


@named
def test_a_recipe_parses_and_holds_no_machine_of_ours(path: Path) -> None:
    experiment = load_experiment(path)
    assert {"linear_probe": "probe"}.get(experiment.model.name, experiment.model.name) in path.stem or path in OWN
    assert "runtime" not in path.read_text().replace("runtime.data_dir=", "")
    assert experiment.model.optimizer.warmup_steps < experiment.trainer.max_steps
    if isinstance(experiment.model, TokenizerConfig):
        assert experiment.model.loss.adversarial_start < experiment.trainer.max_steps


@pytest.mark.parametrize("path", PAPER_SCALE, ids=lambda path: path.stem)
def test_a_paper_scale_recipe_names_row_hardware_and_time(path: Path) -> None:
    comment = path.read_text().partition("\ndata:")[0]
    of_tokenizers = ("FID", " h by experiments.preview") if path in BUILT else ()
    for text in ("Table", "row", "Not run here", *of_tokenizers):
        assert text in comment
    gpus = "8 V100" if path.stem.startswith(("ldm_", "dit_", "sit_")) else "32 V100"
    assert (gpus in comment) == ("Paper B" in comment) and ("128 TPUv4" in comment) == ("Paper A" in comment)


KEY = r"(?:upstream[.])*(?:(?:model|data|trainer)[.][\w.]+|recipe)=(?:[\w.+-]*\w|\[\d*\])"


def test_keys_named_in_comments_are_keys() -> None:
    """Each `model.x=value` that a comment offers can be given on the command line."""
    offered = {path: re.findall(KEY, comments(path)) for path in ALL}
    assert sum(map(len, offered.values())) > 20 and sum(map(len, (offered[path] for path in DOWNSTREAM))) > 10
    for path, items in offered.items():
        load_experiment(path, [item for item in items if not item.endswith("=FILE")])


def test_the_other_choices_in_the_docs_are_keys_that_change_something() -> None:
    """Each row of the two tables of docs/recipes.md on what the papers leave open, on a recipe of its paper."""
    text = (FOLDER.parent / "docs/recipes.md").read_text()
    checked = 0
    for heading, paper in ("## Paper B: where", "Paper B"), ("## Paper A: what", "Paper A"):
        section = text.partition(heading)[2].partition("\n## ")[0]
        recipes = [path for path in PAPER_SCALE if paper in comments(path)]
        for row in (line for line in section.splitlines() if line.startswith("|")):
            if items := [item for item in re.findall(KEY, row.split("|")[-2]) if not item.endswith("=N")]:
                checked += len(items)
                assert any(changes(path, items) for path in recipes), row
    assert checked > 30


def changes(path: Path, overrides: list[str]) -> bool:
    try:
        return load_experiment(path, overrides).identity() != load_experiment(path).identity()
    except ValueError:  # of another model of the same paper
        return False


@pytest.mark.parametrize("path", PAPER_SCALE, ids=lambda path: path.stem)
def test_a_paper_scale_recipe_repeats_no_default(path: Path) -> None:
    """What a model's file says is not said again."""
    stated, model = read_recipe(path), load_experiment(path).model
    defaults = flatten(asdict(type(model)()))
    changed = [
        key for key, value in flatten(asdict(model)).items() if key.endswith("name") or defaults.get(key) != value
    ]
    assert set(flatten(stated["model"])) <= set(changed)
    assert "batch_size" not in stated["data"]


def comments(path: Path) -> str:
    return "\n".join(line.partition("#")[2] for line in path.read_text().splitlines())


def test_the_f8_recipe_is_the_cell_of_table_2() -> None:
    (table,) = load_grid(FOLDER.parent / "sweeps/vqgan_lc/table2.yaml", "paper").tables
    assert table.rows[-1].heads == {"method": "VQGAN-LC", "tokens": 1024, "K": 100_000}
    assert table.rows[-1].runs[0].digest == load_experiment(FOLDER / "vqgan_lc_f8_imagenet.yaml").digest()


@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_cifar10_recipe_trains_two_steps(path: Path, tmp_path: Path, shared_encoders: None) -> None:
    """On shapes, few and small batches; both sides of the adversarial game from the first step."""
    overrides = [
        "data.batch_size=4",
        "data.train_size=8",
        "data.val_size=8",
        "model.codebook_size=64",
        "model.loss.discriminator_start=0",
        "model.loss.adversarial_start=0",
        "trainer.max_steps=2",
        f"runtime.output_dir={tmp_path}",
        "runtime.accelerator=cpu",
    ]
    if load_experiment(path).model.quantizer.name == "large_codebook":
        source = "model.quantizer.source"
        overrides += [f"{source}.num_images=20", f"{source}.method=random"]
    experiment = resolve_data(load_experiment(path, overrides), "shapes")
    record = train(experiment, path.stem, tmp_path / "run")
    metrics = record["metrics"]
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics["usage/val"] <= 100 and metrics["psnr"] > 3
    checkpoint = torch.load(tmp_path / "run/checkpoints/final.ckpt", weights_only=True)
    assert checkpoint["global_step"] == checkpoint["generator_steps"] == 2


@pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)
def test_a_paper_scale_recipe_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device, without the networks that need downloads."""
    monkeypatch.setattr(tokenizer, "TokenizerMetrics", lambda *_: nn.Identity())
    monkeypatch.setattr(tokenizer, "build_perceptual", lambda *_: nn.Identity())
    experiment = load_experiment(path)
    with torch.device("meta"):
        module = build_model(experiment)
        latents = module.pre_quant(module.encoder(torch.zeros(1, 3, 256, 256)))
        prediction = module.predict(latents)
    tokens = 32 if path.stem.startswith(("vit_", "cnn_", "vqgan_lc_f8")) else 16
    assert latents.shape == (1, tokens, tokens, experiment.model.code_dim)
    assert module.to_image(prediction).shape == (1, 3, 256, 256)
    assert module.discriminator is not None


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_a_recipe_for_own_images_makes_256_tokens_and_needs_no_download(path: Path) -> None:
    experiment = load_experiment(path)
    with torch.device("meta"):
        module = build_model(experiment, Setting(experiment.data.image_size, for_use=True))
        latents = module.pre_quant(module.encoder(torch.zeros(1, 3, *[experiment.data.image_size] * 2)))
    assert latents.shape == (1, 16, 16, experiment.model.code_dim)
    assert experiment.data.flip and experiment.model.loss.perceptual_network == "efficientnet-lite0"
    quantizer, steps = experiment.model.quantizer, experiment.trainer.max_steps
    assert quantizer.place_at == experiment.model.optimizer.warmup_steps == steps // 20
    assert experiment.model.loss.adversarial_start == experiment.model.loss.discriminator_start == steps * 3 // 4


@pytest.mark.parametrize("path", DOWNSTREAM, ids=lambda path: path.stem)
def test_a_recipe_of_stage_two_builds_on_what_it_stands_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device: the tokens of the tokenizer are those of the transformer, whose width is the probe's."""
    for module, name in (tokenizer, "TokenizerMetrics"), (tokenizer, "build_perceptual"), (prior, "GenerationMetrics"):
        monkeypatch.setattr(module, name, lambda *_: nn.Identity())
    monkeypatch.setattr(token_classifier, "load_pretrained", lambda *_, **__: None)
    experiment = load_experiment(path)
    with torch.device("meta"):
        module = build_downstream(experiment)
    if isinstance(module, vim.VIM):
        tokens = 64 if path.stem.endswith("_cifar10") else 256 if path.stem.startswith("gpt_") else 1024
        assert module.gpt.num_tokens == tokens
        assert module.gpt.head.weight.shape[0] == experiment.upstream.model.codebook_size
    elif isinstance(module, LatentPrior):
        side = 8 if path.stem.endswith("_cifar10") else 32 if "_f8_" in path.stem else 16
        dims = 4 if "_f8_" in path.stem else 8
        assert (module.network.channels, *module.network.grid_size) == (dims, side, side)
        assert module.network.num_classes == (0 if path.stem == "ldm_ffhq" else 10 if side == 8 else 1000)
    elif isinstance(module, TokenClassifier):
        width, side = (768, 16) if path in PAPER_SCALE else (128, 8)
        embed = module.network.patch_embed
        assert (embed.proj.weight.shape, embed.grid_size) == ((width, 8, 1, 1), (side, side))
    else:
        of_vim = {"probe_vim_imagenet": (36, 2048, 1000), "probe_vim_cifar10": (8, 256, 10)}
        assert module.weight.shape == of_vim.get(path.stem, (1, 128, 10))


def build_downstream(experiment: Experiment) -> Any:
    """On untrained models below."""
    classes = 10 if experiment.data.name == "cifar10" else 1000
    bottom, upstream = build_model(experiment.bottom), experiment.upstream
    below = bottom if upstream is experiment.bottom else build_downstream(upstream)
    grid, size = (bottom.encoder.grid_size,) * 2, experiment.data.image_size
    tokenizer = experiment.tokenizer
    setting = Setting(size, classes, tokenizer.codebook_size, grid, below, bottom, "x", code_dim=tokenizer.code_dim)
    return build_model(experiment, setting)


@pytest.mark.parametrize("scale", ["quick", "reduced", "paper"])
def test_the_probes_of_table_7_stand_on_what_the_paper_says(scale: str) -> None:
    """None of A's tokenizers there had the perceptual loss; VIM-Base was trained with dropout, VIM-Large without."""
    (table,) = load_grid(FOLDER.parent / "sweeps/vit_vqgan/table7.yaml", scale).tables
    rows = [row for row in table.rows if row.runs]
    controls = [row for row in rows if row.heads["method"] != "VIM"]
    rows = rows[: len(rows) - len(controls)]
    assert len(rows) == {"quick": 1, "reduced": 2, "paper": 3}[scale]
    for run in (run for row in controls if row.heads["tokenizer"] != "none" for run in row.runs):
        vim = next(other for row in rows for other in row.runs if other.experiment.seed == run.experiment.seed
                   and row.heads["tokenizer"] in run.label)  # fmt: skip
        assert run.experiment.upstream == vim.experiment.upstream.upstream, "the same tokenizer, not trained again"
    for row in rows:
        for run in row.runs:
            gpt = run.experiment.upstream.model.gpt
            assert run.experiment.upstream.upstream.model.loss.perceptual == 0, run.label
            if scale == "paper":
                expected = {"Base 650M": ("base", 0.1), "Large 1697M": ("large", 0.0)}[row.heads["size"]]
                assert (gpt.size, gpt.dropout) == expected, run.label


@pytest.mark.parametrize("scale", ["quick", "reduced", "cifar", "paper"])
def test_the_classifiers_of_section_4_2_have_one_budget(scale: str) -> None:
    """Network, length, images and augmentation, whatever they read."""
    (table,) = load_grid(FOLDER.parent / "sweeps/vqgan_lc/section4_2.yaml", scale).tables
    rows = [run.experiment for row in table.rows for run in row.runs]
    assert {row.model.reads for row in rows} >= {"codes", "images"}
    assert [row.heads["read as"] for row in table.rows if is_control(row)] == ["images"], "it is not a best row"
    assert (
        len(
            {
                str(replace(row, model=replace(row.model, reads="codes"), upstream=None, recipe="", seed=0))
                for row in rows
            }
        )
        == 1
    )
