"""10,000 mutations of the recipes and sweeps: each is a valid configuration or one line of error, never a traceback."""

import contextlib
import copy
import datetime
import functools
import gc
import io
import json
import math
import random
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import TinyExperiment

from experiments.config import compose as config
from experiments.config.compose import compose, load_experiment, parse, read_recipe
from experiments.config.values import read_yaml
from experiments.pipeline.build import build_model
from experiments.runtime.errors import user_errors
from lightning_modules import tokenizer
from sweeps import grid
from sweeps.grid import SWEEPS, load_grid

PROJECT = Path(__file__).parents[3]
RECIPES = sorted((PROJECT / "experiments").glob("*.yaml"))
TOKENIZERS = [path for path in RECIPES if "upstream:" not in path.read_text()]
DOWNSTREAM = [path for path in RECIPES if path not in TOKENIZERS]  # dear: two or three recipes are parsed for each
GRIDS = sorted(
    path for path in SWEEPS.rglob("[!s]*.yaml") if path.parent.name != "scales" and path.name != "claims.yaml"
)  # not search_*.yaml
SCALES = sorted((SWEEPS / "scales").glob("*.yaml"))

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, -(2**63), 10**30, 1.5, 1e-320, math.nan, math.inf, -math.inf),
    *("", " ", "???", "${model.name}", "${oc.env:NO_SUCH_VARIABLE}", "${", "\x00", "é ü 漢 🙂", "a\nb", "nan", "1e3"),
    *(b"\xff\x00", datetime.date(2020, 1, 1), "x" * 5000),
    *([], [1], ["a", None], [[1, [2]]], [{}], {}, {"a": {"b": 1}}, {1: 2}, {None: 1}, {"name": "vq"}, {"name": ["vq"]}),
]  # fmt: skip
KEYS: list[Any] = ["", "name", "model", "upstream", "recipe", "data.name", "a b", 0, None, 1.5, True, b"x", "é", "${"]


def places(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """(path of the container, key) of everything in nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield path, key
        yield from places(value, (*path, key))


def at(tree: Any, path: tuple) -> Any:
    return functools.reduce(lambda node, key: node[key], path, tree)


def mutated(tree: Any, rng: random.Random) -> Any:
    """One to three entries deleted, renamed, nested, swapped for others or for values of another type or size."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        known = [*places(tree)]
        if not known:
            break
        path, key = rng.choice(known)
        other, holder = at(tree, (lambda p, k: (*p, k))(*rng.choice(known))), at(tree, path)
        value, kind = holder[key], rng.randrange(7)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            del holder[key]
            text, cut = str(key), rng.randrange(len(str(key)) + 1)
            near = [text[:cut] + text[cut + 1 :], text[:cut] + rng.choice("aé. ${}[]:\n_0") + text[cut:], text.upper()]
            holder[rng.choice([*near, *KEYS])] = value
        elif kind == 2:
            holder[key] = copy.deepcopy(other)
        elif kind == 3:
            holder[key] = rng.choice([[value], {str(key): value}])
        elif kind == 4 and isinstance(value, int | float):
            holder[key] = rng.choice([-value, value * 10**12, value + 0.5, str(value)])
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return tree


def garbled(text: str, rng: random.Random) -> bytes:
    """A file that was cut off, with bytes changed or put in, or lines doubled, dropped or indented."""
    data, position = bytearray(text.encode()), rng.randrange(len(text.encode()))
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:position])
    if kind == 1:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        return bytes(data)
    if kind == 2:
        tokens = [
            b"\t",
            b"\x00",
            b"\xff",
            b"[",
            b"}",
            b": ",
            b"\n- ",
            b"&a ",
            b"*a ",
            b"!!python/name:os.system ",
            b"'",
            b"---\n",
        ]
        return bytes(data[:position] + rng.choice(tokens) + data[position:])
    lines = text.splitlines(keepends=True)
    line = rng.randrange(len(lines))
    if kind == 3:
        return "".join(lines[:line] + lines[line : line + 1] * rng.choice([0, 2]) + lines[line + 1 :]).encode()
    return "".join([*lines[:line], rng.choice(["  ", " ", "\t", "- "]) + lines[line], *lines[line + 1 :]]).encode()


class Outcomes:
    """How many mutations were valid, how many one line, and the tracebacks of the others."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.defects: dict[str, str] = {}

    def try_(self, load: Callable[[], Any], what: Any) -> None:
        error = io.StringIO()
        try:
            with contextlib.redirect_stderr(error), user_errors():
                load()
            self.counts["valid"] += 1
        except SystemExit:
            message = error.getvalue()
            is_one_line = message.count("\n") == 1 and message.startswith("error: ") and len(message) > 20
            self.counts["error" if is_one_line else "bad message"] += 1
            if not is_one_line:
                self.defects.setdefault(message, repr(what)[:500])
        except BaseException:
            trace = traceback.format_exc()
            self.counts["traceback"] += 1
            self.defects.setdefault(trace, repr(what)[:500])

    def check(self, total: int, valid: float) -> None:
        shown = "\n".join(f"{trace}from: {what}" for trace, what in [*self.defects.items()][:3])
        assert not self.defects, f"{self.counts}\n{shown}"
        assert self.counts.total() == total
        assert valid < self.counts["valid"] / total < 1 - valid, f"{self.counts}: mutations too wild or too tame"


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recipes that a mutation names are read once; and torch's objects need not be collected again and again."""
    cached, files = functools.cache(read_yaml), [*RECIPES, *(PROJECT / "experiments/reductions").glob("*.yaml")]
    monkeypatch.setattr(config, "read_yaml", lambda path: (cached if path in files else read_yaml)(path))
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def load(tree: dict[str, Any]) -> None:
    experiment = parse(compose(tree), "recipe.yaml")
    json.dumps([experiment.identity(), experiment.digest()], allow_nan=False)


@pytest.mark.parametrize(("paths", "number"), [(TOKENIZERS, 7300), (DOWNSTREAM, 300)], ids=["tokenizers", "downstream"])
def test_mutated_recipes(paths: list[Path], number: int) -> None:
    rng, outcomes, trees = random.Random(0), Outcomes(), [read_recipe(path) for path in paths]
    for i in range(number):
        tree = mutated(trees[i % len(trees)], rng)
        outcomes.try_(lambda tree=tree: load(tree), tree)  # type: ignore[misc]
    outcomes.check(number, valid=0.05)


SIZES: dict[type, list[Any]] = {
    bool: [True, False],
    int: [-1, 0, 1, 2, 12],
    float: [-0.1, 0.0, 1.0],
    str: ["micro", "sincos", "learned", "gelu", "x"],
    list: [[], [-1], [0], [1], [1, 2], [2, 0, 64, 128], [1, 2, 32, 0], [1, 2, 32, 64]],
}


def test_networks_that_parse_can_be_built(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key of every backbone and discriminator: one line of error, or weights (on the meta device)."""
    monkeypatch.setattr(tokenizer, "TokenizerMetrics", lambda *_: torch.nn.Identity())
    outcomes = Outcomes()
    for name in ("vqgan", "vit_vqgan"):
        for part in ("backbone", "discriminator"):
            for key, default in vars(getattr(tiny(name).model, part)).items():
                for value in SIZES[type(default)] if key != "name" else []:
                    override = f"model.{part}.{key}={json.dumps(value)}"
                    outcomes.try_(lambda name=name, override=override: build(tiny, name, override), override)  # type: ignore[misc]
    outcomes.check(outcomes.counts.total(), valid=0.05)


def build(tiny: TinyExperiment, name: str, override: str) -> None:
    with torch.device("meta"):
        module = build_model(tiny(name, "model.loss.adversarial=0.1", override))
    assert all(parameter.numel() for parameter in module.parameters()), f"{override}: an empty weight"


def test_garbled_recipe_files(tmp_path: Path) -> None:
    rng, outcomes, path = random.Random(1), Outcomes(), tmp_path / "recipe.yaml"
    texts = [p.read_text() for p in TOKENIZERS]
    shutil.copytree(PROJECT / "experiments/reductions", tmp_path / "reductions")
    for i in range(1500):
        content = garbled(texts[i % len(texts)], rng)
        path.write_bytes(content)
        outcomes.try_(lambda: load_experiment(path), content)
    outcomes.check(1500, valid=0.05)


def test_mutated_arguments() -> None:
    rng, outcomes, tree = random.Random(2), Outcomes(), read_recipe(TOKENIZERS[0])
    keys = ["model.codebook_size", "model.optimizer.betas", "trainer.max_steps", "data.name", "data.flip", "model"]
    values = [
        "64",
        "0",
        "-1",
        "1e3",
        "1.5",
        "1e999",
        "nan",
        "[0.9,0.99]",
        "[0.9",
        "shapes",
        "true",
        "null",
        "{a: 1}",
        "é",
    ]
    for i in range(500):
        text = f"{rng.choice(keys)}={rng.choice(values)}"
        if i % 2:
            text = garbled(text, rng).decode(errors="surrogateescape")
        outcomes.try_(lambda text=text: parse(compose(tree, config.from_dotlist([text])), "x.yaml"), text)  # type: ignore[misc]
    outcomes.check(500, valid=0.05)


def test_mutated_sweeps(tmp_path: Path) -> None:
    """Of each sweep one table with one cell at a time: a whole grid would take seconds."""
    rng, outcomes, path = random.Random(3), Outcomes(), tmp_path / "sweep.yaml"
    trees = [read_yaml(file) for file in GRIDS]
    for i in range(200):
        tree = copy.deepcopy(trees[i % len(trees)])
        table = rng.choice(tree["tables"])
        table["cells"], tree["tables"] = [rng.choice(table["cells"])], [table]
        tree = mutated(tree, rng)
        path.write_text(yaml.safe_dump(tree, allow_unicode=True))
        outcomes.try_(lambda: load_grid(path, "quick"), tree)
    outcomes.check(200, valid=0.05)


def test_mutated_scales(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, outcomes, sweep = random.Random(4), Outcomes(), tmp_path / "sweep.yaml"
    tree = read_yaml(GRIDS[0])
    tree["tables"] = [tree["tables"][0] | {"cells": tree["tables"][0]["cells"][:1]}]
    sweep.write_text(yaml.safe_dump(tree))
    (tmp_path / "scales").mkdir()
    monkeypatch.setattr(grid, "SWEEPS", tmp_path)
    scales = [read_yaml(file) for file in SCALES]
    for i in range(200):
        scale = mutated(scales[i % len(scales)], rng)
        (tmp_path / "scales/quick.yaml").write_text(yaml.safe_dump(scale, allow_unicode=True))
        outcomes.try_(lambda: load_grid(sweep, "quick"), scale)
    outcomes.check(200, valid=0.05)
