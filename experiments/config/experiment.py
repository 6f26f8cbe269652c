"""What an experiment consists of: the dataclasses that stand beside the classes they configure, picked by name.

The names in a file (`data.name`, `model.name`, `model.quantizer.name`, ...) pick them. Defaults are stated there and
nowhere else.
"""

import difflib
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules import DATAMODULES, DataConfig
from experiments.config.identity import differences, digest
from experiments.config.values import select
from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.networks import BACKBONES, DISCRIMINATORS
from lightning_modules.options import no_identity
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


@dataclass
class TrainerConfig:
    """How long and how precisely to train. `weight_ema`: decay of averaged weights used for validation, 0 = off."""

    max_steps: int = 1000
    precision: str = "32-true"  # 32-true | bf16-mixed
    validate_every: int = 0  # steps between validations, 0 = only at the end
    checkpoint_every: int = no_identity(1000)
    log_every: int = no_identity(10)
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


@dataclass
class Experiment:
    """One training run: everything that decides its numbers, and `runtime`, which must not."""

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = no_identity(RuntimeConfig)

    def identity(self) -> dict[str, Any]:
        """The plain nested dictionary of the configuration, without `runtime`, as records and checkpoints hold it."""
        return {key: value for key, value in asdict(self).items() if key != "runtime"}

    def digest(self) -> str:
        """12 hex digits that name all that decides the numbers."""
        return digest(self)

    def differences(self, config: dict[str, Any]) -> list[str]:
        """What decides numbers in the nested `config` of a record or checkpoint and differs here, with both values."""
        return differences(config, self, self.identity())


@dataclass
class Downstream(Experiment):
    """A run on top of another's model: VIM on a tokenizer, a probe on VIM.

    In a YAML `upstream` holds `recipe`, a file of this folder, and what is changed of it:
    `upstream: {recipe: vit_vqgan_cifar10.yaml, model: {code_dim: 4}}`. Data and seed of the two are independent.
    """

    model: Any = field(default_factory=VIMConfig)
    upstream: Any = None  # the other Experiment; `parse` sets it
    recipe: str = no_identity("")  # its file: for people

    @property
    def upstream_name(self) -> str:
        return Path(self.recipe).stem

    def identity(self) -> dict[str, Any]:
        own = {"seed": self.seed} | {key: asdict(getattr(self, key)) for key in ("data", "model", "trainer")}
        return own | {"upstream": {"recipe": self.recipe} | self.upstream.identity()}


# Keys whose value names the class to use, and the table that holds its configuration (the last element).
CHOICES: dict[str, Mapping[str, tuple]] = {
    "data": DATAMODULES,
    "model": ChainMap(DOWNSTREAM, MODULES),
    "model.backbone": BACKBONES,
    "model.quantizer": QUANTIZERS,
    "model.discriminator": DISCRIMINATORS,
}


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
