"""docs/options.md is current, and names every option that a recipe can set."""

import re
from dataclasses import asdict
from typing import Any

import pytest

from docs import options
from experiments.config.compose import RECIPES, load_experiment


def test_the_page_is_current() -> None:
    assert options.PAGE.read_text() == options.page(), "run `make options`"


def leaves(values: dict[str, Any], section: str = "") -> list[tuple[str, str]]:
    """(section, option) of every value of a resolved configuration, without names, which stand in headings."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += leaves(value, f"{section}.{key}".lstrip("."))
        elif key != "name":
            found.append((section, key))
    return found


@pytest.mark.parametrize("recipe", ["vit_vqgan_cifar10", "vqgan_lc_imagenet", "probe_vim_cifar10", "vim_cifar10"])
def test_every_option_of_a_recipe_is_on_the_page(recipe: str) -> None:
    documented = set()
    for text in options.page().split("\n## ")[1:]:
        heading, *rows = text.splitlines()
        keys = re.findall(r"`([a-z_.]+)`", heading.split(" with ")[0]) or [""]
        documented |= {(key, row[1]) for key in keys for row in map(re.compile(r"\| `(\w+)`").match, rows) if row}
    experiment = load_experiment(RECIPES / f"{recipe}.yaml")
    own = {key: value for key, value in asdict(experiment).items() if key not in ("upstream", "recipe")}
    assert set(leaves(own)) <= documented
