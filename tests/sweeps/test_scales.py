"""Scales are shorter or longer versions of the same recipes: what depends on the length is changed with it."""

import pytest

from experiments.config.compose import RECIPES, load_experiment
from lightning_modules.tokenizer import TokenizerConfig
from sweeps.grid import load_grid
from sweeps.schema import SWEEPS, scale_names

SWEEP_FILES = ["ablation_codebook.yaml", "vqgan_lc/figure3.yaml", "vit_vqgan/table1.yaml"]
SMALL = [scale for scale in scale_names() if scale != "paper"]


@pytest.mark.parametrize("scale", SMALL)
@pytest.mark.parametrize("name", SWEEP_FILES)
def test_warm_up_game_and_placement_keep_their_places_in_the_training(name: str, scale: str) -> None:
    """A tenth, the last quarter if there is a game, and the end of the warm-up."""
    for run in load_grid(SWEEPS / name, scale, "1").runs:
        model, steps = run.experiment.model, run.experiment.trainer.max_steps
        assert isinstance(model, TokenizerConfig)
        assert model.optimizer.warmup_steps == steps / 10, run.label
        if model.loss.adversarial:
            assert model.loss.discriminator_start == model.loss.adversarial_start == steps * 3 / 4, run.label
        assert getattr(model.quantizer, "place_at", 0) in (0, model.optimizer.warmup_steps), run.label


def test_codes_are_placed_at_the_end_of_the_warm_up_at_paper_scale() -> None:
    placed = [run for run in load_grid(SWEEPS / SWEEP_FILES[0], "paper").runs if "placed" in run.label]
    assert len(placed) == 6
    for run in placed:
        assert run.experiment.model.quantizer.place_at == run.experiment.model.optimizer.warmup_steps  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["vqgan_lc", "vqgan_ema", "vit_vqgan", "cnn_vqgan"])
def test_the_small_recipes_see_all_images_and_are_judged_on_all(name: str) -> None:
    experiment = load_experiment(RECIPES / f"{name}_cifar10.yaml")
    model = experiment.model
    assert isinstance(model, TokenizerConfig)
    assert experiment.data.train_size is None and experiment.data.val_size is None and model.metrics.num_images == 0
    weight = 0.25 if name in ("vit_vqgan", "cnn_vqgan") else 1.0  # A's is of pixels in [0, 1]
    assert model.loss.l2 == weight and model.loss.quantizer == (1.0 if weight < 1 else 0.1)


def test_the_ablation_has_its_ceiling_and_its_controls() -> None:
    (table, _) = load_grid(SWEEPS / SWEEP_FILES[0], "cifar").tables
    assert {"none, narrow", "VQ placed", "EMA placed", "EMA", "LC"} <= {row.heads["quantizer"] for row in table.rows}
    by_row = {(row.heads["quantizer"], row.heads["K"]): row.runs[0].experiment.model for row in table.rows}
    sim, large = by_row["SimVQ", 16384], by_row["LC", 16384]
    for key in ("commitment_weight", "codebook_weight", "match_scale"):
        assert getattr(sim.quantizer, key) == getattr(large.quantizer, key), key  # type: ignore[attr-defined]
    assert sim.code_dim == large.code_dim == by_row["none, narrow", "none"].code_dim  # type: ignore[attr-defined]
