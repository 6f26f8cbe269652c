"""From a YAML file and key=value arguments to a checked `Experiment`."""

import copy
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from experiments.config.experiment import CHOICES, Experiment, classes_of, schema
from experiments.config.plugins import plugged_in
from experiments.config.values import explain, flatten, from_dotlist, merge, read_yaml, select
from lightning_modules.quantizers import QuantizerConfig

RECIPES = Path(__file__).resolve().parents[1]
CONFIG = "config.yaml"  # in a run's folder: what the run is
PARTS = [key for key in CHOICES if "." in key]  # sections whose keys belong to one class only


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads `path`, applies `key=value` overrides and returns a checked Experiment.

    Raises ValueError, with the file and key at fault and what to do, for a missing file, broken YAML, an unknown
    key (with the nearest existing one), a wrong type, or a wrong name.
    """
    values = compose(read_recipe(path), from_dotlist(overrides))
    values.pop("plugins", None)  # of a run's config.yaml: what trains is the code that is here now
    return parse(values, str(path))


def as_yaml(experiment: Experiment, name: str = "") -> str:
    """The whole configuration, which `experiments.train` reads again; `name`: of the run, by default its own."""
    values = {"name": name or experiment.name} | experiment.identity() | {"runtime": asdict(experiment.runtime)}
    return OmegaConf.to_yaml(values)


def described(experiment: Experiment, name: str) -> str:
    """`as_yaml` below the command that trains it: `CONFIG`, a text in TensorBoard, an entry of its checkpoints.

    Passwords in URLs are left out of the command.
    """
    command = re.sub(r"(?<=://)[^/@\s]+@", "", shlex.join(sys.orig_argv))
    return f"# {' '.join(command.split())}\n{as_yaml(experiment, name)}"


def changed(experiment: Experiment, name: str) -> dict[str, Any]:
    """The flat keys in which it differs from this suite's recipe `name` or, where there is none, from the defaults."""
    path, values = RECIPES / f"{name}.yaml", experiment.identity()
    base = load_experiment(path) if path.is_file() else schema(values)
    before = flatten(base.identity())
    return {key: value for key, value in flatten(values).items() if before.get(key, "") != value}


def find_recipe(path: str | Path) -> Path:
    """The file itself or, where there is none, the recipe of this suite that has its name, with or without .yaml."""
    given = Path(os.path.expanduser(path))
    if given.is_file() or not given.name or given.parent not in (Path(), Path("experiments")):
        return given
    ours = RECIPES / (given.name if given.suffix else f"{given.name}.yaml")
    return ours if ours.is_file() or not list(given.parent.glob("*.yaml")) else given


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of `find_recipe` over those of the file that its key `extends` names, which may extend another one.

    `extends` is a path from the file's own folder, or a recipe of this suite. Raises ValueError that names the file.
    """
    found = find_recipe(path)
    files, layers = [found], [read_yaml(found)]
    while "extends" in layers[0]:
        base = str(layers[0].pop("extends"))
        file = files[-1].parent / base
        file = find_recipe(base) if not file.is_file() and find_recipe(base).is_file() else file
        if file.resolve() in [known.resolve() for known in files]:
            raise ValueError(f"{files[-1]}: extends='{base}' leads back to itself")
        files.append(file)
        layers.insert(0, read_yaml(file))
    return compose(*layers)


def compose(*layers: dict[str, Any]) -> dict[str, Any]:
    """Like `merge`, but a layer that picks another backbone, quantizer or discriminator replaces that whole section.

    What earlier layers set there was meant for another class: `model.quantizer.name=fsq` works on any recipe. So does
    `upstream.recipe=OTHER.yaml`.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        values = leave_recipe(values, layer)
        before, after = part_names(values), part_names(merge(values, layer))
        for key in before.keys() & after.keys():
            parent, leaf = key.split(".")
            if before[key] != after[key]:
                values[parent].pop(leaf, None)
        values = merge(values, layer)
    return values


def leave_recipe(values: dict[str, Any], layer: dict[str, Any]) -> dict[str, Any]:
    """`values` without the changes to an upstream recipe, where `layer` names another one."""
    ours, theirs = values.get("upstream"), layer.get("upstream")
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return values
    is_other = "recipe" in theirs and theirs["recipe"] != ours.get("recipe")
    return values | {"upstream": {} if is_other else leave_recipe(ours, theirs)}


def part_names(values: dict[str, Any]) -> dict[str, str]:
    """The name of each part's class; none where `values` is not yet a whole experiment, or names what is not there."""
    try:
        experiment = schema(values)
    except ValueError:
        return {}
    parts = {key: getattr(experiment.model, key.split(".")[1], None) for key in PARTS}
    return {key: part.name for key, part in parts.items() if part is not None}


def parse(values: dict[str, Any], origin: str) -> Experiment:
    """Checks plain nested `values` against the schema that their names pick. `origin` is named in errors."""
    own = {key: value for key, value in values.items() if key != "upstream"}
    config = typed(schema(own, origin))
    if "recipe" in own:
        raise ValueError(f"{origin}: unknown key 'recipe'; did you mean 'upstream.recipe'?")
    try:
        config.merge_with(own)
        experiment = OmegaConf.to_object(config)
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list in place of a section
        raise ValueError(f"{origin}: {explain(error, config, own)}") from None
    assert isinstance(experiment, Experiment)
    experiment.plugins = experiment.plugins or plugged_in(classes_of(experiment))  # a checkpoint's is of its training
    if (upstream := values.get("upstream")) is not None:
        experiment.recipe, experiment.upstream = parse_upstream(upstream, origin)
    check(experiment, origin)
    return experiment


def typed(base: Experiment) -> DictConfig:
    """`base` with the types of its fields. Made once for each choice of classes, as it would take most of `parse`."""
    key = repr(base)
    if key not in TYPED:
        TYPED[key] = OmegaConf.structured(base)
    return copy.deepcopy(TYPED[key])


TYPED: dict[str, DictConfig] = {}


def parse_upstream(values: Any, origin: str) -> tuple[str, Experiment]:
    """The section `upstream`: its recipe's file name and the experiment, with the section's changes."""
    if not isinstance(values, dict) or not values.get("recipe") or not isinstance(values["recipe"], str):
        raise ValueError(f"{origin}: upstream.recipe must name a recipe, such as vit_vqgan_cifar10.yaml")
    recipe, changes = values["recipe"], {key: value for key, value in values.items() if key != "recipe"}
    named = {key for key in ("data", "model") if select(changes, f"{key}.name")}
    is_whole = {"seed", "trainer"} <= changes.keys() and len(named) == 2  # as records and checkpoints hold it
    layers = [changes] if is_whole else [read_recipe(RECIPES / recipe), changes]
    return recipe, parse(compose(*layers), f"{origin}: upstream ({recipe})")


def check(experiment: Experiment, origin: str) -> None:
    """Calls every section's `check()`. Raises ValueError that names `origin`, the key and the value at fault."""
    place = f"{origin}: "
    try:
        check_numbers(experiment)
        for path, section in sections(experiment):
            # a quantizer's takes the sizes, with which the tokenizer's calls it
            if hasattr(section, "check") and not isinstance(section, QuantizerConfig):
                place = f"{origin}: {path}"
                section.check()
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dataclass and all those in it, inner ones first, with "model.loss." before their keys; not `upstream`, which
    has been checked, nor `runtime`, which depends on the machine."""
    for name in (field.name for field in fields(config)):
        if is_dataclass(value := getattr(config, name)) and name not in ("upstream", "runtime"):
            yield from sections(value, f"{path}{name}.")
    yield path, config


def check_numbers(experiment: Experiment) -> None:
    """What the types let pass: infinite numbers, whole ones that no tensor holds, and lists in lists."""
    for path, section in (*sections(experiment), ("runtime.", experiment.runtime)):
        for name, value in vars(section).items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, list | dict):
                    raise ValueError(f"{path}{name}={value}: must be a list of numbers")
                if isinstance(item, int | float) and not abs(item) < 2**63:
                    raise ValueError(f"{path}{name}={value} is not a number to compute with")
