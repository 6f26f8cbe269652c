"""From a YAML file and key=value arguments to a checked `Experiment`.

The schema is made of the dataclasses that stand beside the classes they configure: the names in the file
(`data.name`, `model.name`, `model.quantizer.name`, ...) pick them. Defaults are stated there and nowhere else.
"""

import difflib
import hashlib
import json
import pickle
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules import DATAMODULES, DataConfig
from experiments.checks import check
from experiments.values import assign, explain, from_dotlist, merge, read_yaml, select, without_defaults
from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.networks import BACKBONES, DISCRIMINATORS
from lightning_modules.quantizers import QUANTIZERS
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig
from lightning_modules.vim import VIM, VIMConfig
from lightning_modules.vit_vqgan import ViTVQGAN, ViTVQGANConfig
from lightning_modules.vqgan import VQGAN, VQGANConfig
from lightning_modules.vqgan_ema import VQGANEMA, VQGANEMAConfig
from lightning_modules.vqgan_fc import VQGANFC, VQGANFCConfig
from lightning_modules.vqgan_lc import VQGANLC, VQGANLCConfig

MODULES: dict[str, tuple[type[Tokenizer], type[TokenizerConfig]]] = {
    "vqgan": (VQGAN, VQGANConfig),
    "vqgan_ema": (VQGANEMA, VQGANEMAConfig),
    "vqgan_fc": (VQGANFC, VQGANFCConfig),
    "vqgan_lc": (VQGANLC, VQGANLCConfig),
    "vit_vqgan": (ViTVQGAN, ViTVQGANConfig),
}
# What is trained on top of another experiment's model.
DOWNSTREAM: dict[str, tuple[type, type]] = {
    "vim": (VIM, VIMConfig),
    "linear_probe": (LinearProbe, LinearProbeConfig),
}
RECIPES = Path(__file__).resolve().parent


@dataclass
class TrainerConfig:
    """How long and how precisely to train. `weight_ema`: decay of averaged weights used for validation, 0 = off."""

    max_steps: int = 1000
    precision: str = "32-true"  # 32-true | bf16-mixed
    validate_every: int = 0  # steps between validations, 0 = only at the end
    checkpoint_every: int = 1000
    log_every: int = 10
    weight_ema: float = 0.0


@dataclass
class RuntimeConfig:
    """Where and on what to run. Not part of an experiment's identity."""

    data_dir: str = "data"
    output_dir: str = "runs"
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    num_workers: int = 0
    compile: bool = False


@dataclass
class Experiment:
    """One training run: everything that decides its numbers, and `runtime`, which must not."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def identity(self) -> dict[str, Any]:
        """The plain nested dictionary of all that decides the numbers (no `runtime`)."""
        return {key: value for key, value in asdict(self).items() if key != "runtime"}

    def changes(self) -> dict[str, Any]:
        """Of `identity`, flat, what is not a default."""
        return without_defaults(self.identity(), schema(self.identity()))

    def changed(self) -> set[str]:
        """The flat keys of `identity` whose value is not the default; names always are among them."""
        return set(self.changes())

    def digest(self) -> str:
        """12 hex digits that name this experiment.

        Only what differs from the defaults is hashed, so that adding an option does not rename finished runs;
        the records hold the full configuration, and a look-up compares it.
        """
        return hashlib.sha256(json.dumps(self.changes(), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Downstream(Experiment):
    """A run on top of another's model: VIM on a tokenizer, a probe on VIM.

    In a YAML `upstream` holds `recipe`, a file of this folder, and what is changed of it:
    `upstream: {recipe: vit_vqgan_cifar10.yaml, model: {code_dim: 4}}`. Data and seed of the two are independent.
    """

    model: Any = field(default_factory=VIMConfig)
    upstream: Any = None  # the other Experiment; `parse` sets it
    recipe: str = ""  # its file

    @property
    def upstream_name(self) -> str:
        return Path(self.recipe).stem

    def identity(self) -> dict[str, Any]:
        own = {"seed": self.seed} | {key: asdict(getattr(self, key)) for key in ("data", "model", "trainer")}
        return own | {"upstream": {"recipe": self.recipe} | self.upstream.identity()}

    def changes(self) -> dict[str, Any]:
        own = {key: value for key, value in self.identity().items() if key != "upstream"}
        return without_defaults(own, schema(own)) | {"upstream": self.upstream.digest()}

    def changed(self) -> set[str]:
        own = set(self.changes()) - {"upstream"}
        return own | {"upstream.recipe"} | {f"upstream.{key}" for key in self.upstream.changed()}


# Keys whose value names the class to use, and the table that holds its configuration (the last element).
CHOICES: dict[str, Mapping[str, tuple]] = {
    "data": DATAMODULES,
    "model": ChainMap(DOWNSTREAM, MODULES),
    "model.backbone": BACKBONES,
    "model.quantizer": QUANTIZERS,
    "model.discriminator": DISCRIMINATORS,
}
PARTS = [key for key in CHOICES if "." in key]  # sections whose keys are meant for one class alone


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """Reads `path`, applies `key=value` overrides and returns a checked Experiment.

    Raises ValueError, with the file and key at fault and what to do, for a missing file, broken YAML, an unknown
    key (with the nearest known one), a wrong type, or a wrong name.
    """
    return parse(compose(read_yaml(path), from_dotlist(overrides)), str(path))


def compose(*layers: dict[str, Any]) -> dict[str, Any]:
    """Like `merge`; but a layer that picks another backbone, quantizer or discriminator replaces that section whole.

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
    base = schema(own, origin)
    upstream = values.get("upstream")
    if "recipe" in own:
        raise ValueError(f"{origin}: unknown key 'recipe'; did you mean 'upstream.recipe'?")
    if isinstance(base, Downstream) != (upstream is not None):
        raise ValueError(f"{origin}: model '{base.model.name}' {WITH_UPSTREAM[isinstance(base, Downstream)]}")
    try:
        experiment = OmegaConf.to_object(assign(typed(base), own))
    except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list in place of a section
        raise ValueError(f"{origin}: {explain(error, typed(base), own)}") from None
    except ValueError as error:  # of a dataclass's own check
        raise ValueError(f"{origin}: {error}") from None
    assert isinstance(experiment, Experiment)
    if isinstance(experiment, Downstream):
        experiment.recipe, experiment.upstream = parse_upstream(upstream, origin)
    check(experiment, origin)
    return experiment


def typed(base: Experiment) -> DictConfig:
    """`base` with the types of its fields. Made once for each choice of classes, as it would take most of `parse`."""
    key = repr(base)
    if key not in TYPED:
        TYPED[key] = pickle.dumps(OmegaConf.structured(base))
    return cast(DictConfig, pickle.loads(TYPED[key]))  # ours, of this process; a sixth of the time of a deepcopy


TYPED: dict[str, bytes] = {}
WITH_UPSTREAM = {
    True: "needs `upstream: {recipe: FILE.yaml}`, the recipe whose model it stands on",
    False: "stands on no other model: leave out `upstream`",
}


def parse_upstream(values: Any, origin: str) -> tuple[str, Experiment]:
    """The section `upstream`: its recipe's file name and the experiment, with the section's changes."""
    if not isinstance(values, dict) or not isinstance(values.get("recipe"), str):
        raise ValueError(f"{origin}: upstream.recipe must name a recipe, such as vit_vqgan_cifar10.yaml")
    recipe, changes = values["recipe"], {key: value for key, value in values.items() if key != "recipe"}
    named = {key for key in ("data", "model") if select(changes, f"{key}.name")}
    is_whole = {"seed", "trainer"} <= changes.keys() and len(named) == 2  # as records and checkpoints hold it
    layers = [changes] if is_whole else [read_yaml(RECIPES / recipe), changes]
    return recipe, parse(compose(*layers), f"{origin}: upstream ({recipe})")


def schema(values: dict[str, Any], origin: str = "config") -> Experiment:
    """The default Experiment of the classes that `values` names."""
    experiment = Downstream() if str(select(values, "model.name")) in DOWNSTREAM else Experiment()
    for key, table in CHOICES.items():
        *parents, leaf = key.split(".")
        owner: Any = experiment
        for part in parents:
            owner = getattr(owner, part)
        if not hasattr(owner, leaf):  # no backbone in VIM
            continue
        name = select(values, f"{key}.name")
        if name is None:
            name = getattr(owner, leaf).name
        if not isinstance(name, str) or name not in table:
            near = difflib.get_close_matches(str(name), table, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"{origin}: {key}.name='{name}' is none of {', '.join(table)}{hint}")
        if not isinstance(getattr(owner, leaf), table[name][-1]):
            setattr(owner, leaf, table[name][-1]())
    return experiment
