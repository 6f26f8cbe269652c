"""A recipe that is moved to other data is still a valid one: a later command reads its identity again."""

from pathlib import Path

import pytest

from experiments.config.compose import RECIPES, load_experiment, parse
from experiments.pipeline.build import resolve_data

SMALL = sorted(RECIPES.glob("*_cifar10.yaml"))


@pytest.mark.parametrize("word", ["cifar10", "shapes", "image_folder"])
@pytest.mark.parametrize("path", SMALL, ids=lambda path: path.stem)
def test_a_recipe_on_other_data_is_read_again(path: Path, word: str) -> None:
    experiment = resolve_data(load_experiment(path), word)
    again = parse(experiment.identity(), "a record")
    assert again.identity() == experiment.identity() and again.digest() == experiment.digest()


def test_only_tokens_that_are_made_once_are_of_whole_images() -> None:
    """Their tokenizer is trained on random crops all the same, and so is a VIM that encodes them anew."""
    once, anew, probe = (
        resolve_data(load_experiment(f"experiments/{name}_cifar10.yaml", overrides), "image_folder")
        for name, overrides in (
            ("vim", []),
            ("vim", ["model.encode_on_the_fly=true"]),
            ("probe_vim", ["upstream.model.encode_on_the_fly=true"]),
        )
    )
    crops = [x.data.random_crop for x in (once, once.upstream, anew, probe, probe.upstream)]  # type: ignore[attr-defined]
    assert crops == [False, True, True, False, True]
