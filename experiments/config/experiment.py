"""What an experiment consists of: the dataclasses that stand beside the classes they configure, picked by name.

The names in a file (`data.name`, `model.name`, `model.quantizer.name`, ...) pick them. Defaults are stated there and
nowhere else.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamodules import DATAMODULES, DataConfig
from experiments.config.identity import differences, digest
from experiments.config.values import select
from lightning_modules.base import ModuleConfig
from lightning_modules.checks import at_least_one, hint, home_expanded, one_of, require
from lightning_modules.execution import COMPILE, MEMORY_FORMATS
from lightning_modules.models import MODULES, PARTS
from lightning_modules.options import neutral, no_identity
from lightning_modules.tokenizer_config import TokenizerConfig

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


@dataclass
class TrainerConfig:
    """How long, how precisely and how to train.

    `precision`: bf16-mixed and 16-mixed, which has a loss scale for GPUs without bf16, compute the networks in 16 bits;
    weights, losses and code search are float32. On GPUs convolutions of 32-true may be TF32, torch's default; matrix
    products and the search are not. `weight_ema`: decay of averaged weights used for validation, 0 = off.
    `memory_format` and `compile` change rounding alone: networks compiles encoder, decoder, discriminator (not with R1
    or on several devices) and perceptual loss of a tokenizer, for a minute or so; graphs replays the steps of a
    tokenizer and the network of a prior as CUDA graphs on one GPU, and is none elsewhere.
    """

    max_steps: int = 1000
    precision: str = "32-true"  # 32-true | bf16-mixed | 16-mixed
    memory_format: str = no_identity("contiguous")  # contiguous | channels_last
    compile: str = no_identity("none")  # none | networks | graphs
    validate_every: int = 0  # steps between validations, 0 = only at the end
    show_every: int = no_identity(0)  # steps between pictures in TensorBoard, 0 = ten times in all
    checkpoint_every: int = no_identity(1000)
    log_every: int = no_identity(10)
    weight_ema: float = 0.0
    weight_ema_ramp: bool = neutral(False)  # at update n that decay is at most (1 + n) / (10 + n)

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        one_of(self, "precision", PRECISIONS)
        one_of(self, "memory_format", MEMORY_FORMATS)
        one_of(self, "compile", COMPILE)
        require(0 <= self.weight_ema < 1, f"weight_ema={self.weight_ema} must be in [0, 1)")
        require(bool(self.weight_ema) or not self.weight_ema_ramp, "weight_ema_ramp needs trainer.weight_ema above 0")
        at_least_one(self, "max_steps", "checkpoint_every", "log_every")
        require(self.validate_every >= 0, f"validate_every={self.validate_every} must be 0 (off) or more")
        require(self.show_every >= 0, f"show_every={self.show_every} must be 0 (ten times) or more")


@dataclass
class StartConfig:
    """Weights that the training begins with, in place of random ones; `experiments.train --from` sets them.

    Neither optimizer states nor the number of steps are taken: schedule and game begin anew.
    """

    path: str = no_identity("")  # a run's folder, a checkpoint or an exported folder
    weights: str = neutral("")  # a hash of them, which the command fills in
    parts: str = neutral("")  # the networks to take, such as encoder,decoder; "" = all
    grown_from: int = neutral(0)  # codes of a smaller codebook there, which the command fills in; 0 = of the same size

    @property
    def names(self) -> list[str]:
        """Of the parts; [] = all."""
        return [name.strip() for name in self.parts.split(",") if name.strip()]

    def check(self) -> None:
        """Raises ValueError for parts of nothing."""
        require(bool(self.path) or not self.parts, f"parts={self.parts}: of which checkpoint? Set start_from.path")


@dataclass
class RuntimeConfig:
    """Where and on what to run. Not part of an experiment's identity. In paths ~ is the home folder."""

    data_dir: str = "data"
    output_dir: str = "runs"
    accelerator: str = "auto"
    devices: str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    num_workers: int = -1  # processes that load images; -1: some for image files while a GPU trains, else none
    evaluate_later: bool = False  # keep the weights; the same run without this measures them, on any machine
    loggers: str = "tensorboard"  # tensorboard, csv, wandb, mlflow, with commas between several
    keep_weights: bool = False  # keep them, without what is needed to go on training, beside the record

    def __post_init__(self) -> None:
        self.data_dir, self.output_dir = home_expanded(self.data_dir), home_expanded(self.output_dir)


@dataclass
class Experiment:
    """One training run: everything that decides its numbers, and `runtime`, which decides none.

    A model may stand on another experiment's: VIM on a tokenizer, a probe on VIM. In a YAML `upstream` holds `recipe`,
    a file of this folder, and what is changed of it: `upstream: {recipe: vit_vqgan_cifar10.yaml, seed: 1}`.
    Data and seed of the two are independent.
    """

    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModuleConfig = field(default_factory=ModuleConfig)  # of the class that MODULES has for its name
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    runtime: RuntimeConfig = no_identity(RuntimeConfig)
    start_from: StartConfig = field(default_factory=StartConfig)  # weights in place of random ones
    plugins: str = neutral("")  # modules of classes that are not this suite's, with a hash; `parse` fills it in
    upstream: Any = None  # the Experiment below, or None; `parse` sets it
    recipe: str = no_identity("")  # its file, for people
    name: str = no_identity("")  # of the run, in its folder's name; "" = that of the recipe's file

    def check(self) -> None:
        """Raises ValueError where its model, the one below and their images do not go together."""
        require(re.fullmatch(r"[\w.+-]*", self.name) is not None, f"name={self.name}: takes letters, digits and _.+-")
        require(self.seed >= 0, f"seed={self.seed} must not be negative")
        require(
            self.trainer.compile != "networks" or isinstance(self.model, TokenizerConfig),
            f"trainer.compile={self.trainer.compile} is for tokenizers, not for {self.model.name}",
        )
        self.model.check_data(self.data)
        for key, done in (("place_at", "placed"), ("match_at", "matched")):
            step = getattr(getattr(self.model, "quantizer", None), key, 0)
            require(
                step < self.trainer.max_steps,
                f"model.quantizer.{key}={step}: the codes would not be {done} in trainer.max_steps="
                f"{self.trainer.max_steps}; take an earlier step",
            )
        self.model.check_upstream(None if self.upstream is None else self.upstream.model)
        if self.upstream is not None:
            size, below = self.data.image_size, self.upstream.data.image_size
            require(size == below, f"data.image_size={size}, but upstream.data.image_size={below}: they must agree")
        for key in ("random_crop", "augment") if self.is_encoded_once else ():
            whole = f"{self.model.inputs} that are made once are of whole images"
            require(not getattr(self.data, key, False), f"data.{key} needs model.encode_on_the_fly=true: {whole}")

    @property
    def is_encoded_once(self) -> bool:
        """Whether the model reads tokens or latents that were made once, before the training."""
        return self.model.inputs != "images" and not self.model.encode_on_the_fly

    @property
    def bottom(self) -> "Experiment":
        """The experiment at the bottom of what this one stands on, a tokenizer's."""
        return self if self.upstream is None else self.upstream.bottom

    @property
    def tokenizer(self) -> TokenizerConfig:
        """The configuration of the tokenizer at the bottom."""
        model = self.bottom.model
        assert isinstance(model, TokenizerConfig), "as `check_upstream` has seen to"
        return model

    @property
    def upstream_name(self) -> str:
        return Path(self.recipe).stem

    def identity(self) -> dict[str, Any]:
        """The plain nested dictionary of the configuration, without `runtime`, as records and checkpoints hold it."""
        own: dict[str, Any] = {"seed": self.seed}
        own |= {key: asdict(getattr(self, key)) for key in ("data", "model", "trainer")}
        own |= {"start_from": asdict(self.start_from)} if self.start_from.path else {}
        own |= {"plugins": self.plugins} if self.plugins else {}
        return own | ({"upstream": {"recipe": self.recipe} | self.upstream.identity()} if self.upstream else {})

    def digest(self) -> str:
        """12 hex digits that name everything in the configuration that decides the numbers."""
        return digest(self)

    def training_digest(self) -> str:
        """12 hex digits that name the training: as `digest`, whatever is measured of the trained model."""
        return digest(self, without=self.measured_only)

    @property
    def measured_only(self) -> tuple[str, ...]:
        """Beginnings of keys that decide what is measured after the training, and nothing before."""
        return () if self.trainer.validate_every else ("model.metrics.",)

    def differences(self, config: dict[str, Any]) -> list[str]:
        """Keys that decide numbers and differ from the nested `config` of a record or checkpoint, with both values."""
        return differences(config, self, self.identity())


# Keys whose value names the class to use, and the table that holds its configuration (the last element).
CHOICES: dict[str, Mapping[str, tuple]] = {
    "data": DATAMODULES,
    "model": MODULES,
    **{f"model.{part}": table for part, table in PARTS.items()},
}


def schema(values: dict[str, Any], origin: str = "config") -> Experiment:
    """The default Experiment of the classes that `values` names."""
    experiment = Experiment()
    for key, table in CHOICES.items():
        section, _, leaf = key.rpartition(".")
        owner: Any = experiment.model if section else experiment
        if (default := getattr(owner, leaf, None)) is None:  # no backbone in VIM
            continue
        name = default.name if (given := select(values, f"{key}.name")) is None else given
        if not isinstance(name, str) or name not in table:
            near = hint(str(name), table)
            if plugins := values.get("plugins"):
                near = f"; it may be of {plugins}, which --import has to name, or Python's import"
            raise ValueError(f"{origin}: {key}.name='{name}' is none of {', '.join(table)}{near}")
        if not isinstance(default, table[name][-1]):
            setattr(owner, leaf, table[name][-1]())
    experiment.data.batch_size = experiment.model.batch_size
    experiment.trainer.max_steps = experiment.model.max_steps
    return experiment


def classes_of(experiment: Experiment) -> list[type]:
    """All classes that the names in an experiment pick, without their configurations'."""
    found: list[type] = []
    for key, table in CHOICES.items():
        part = getattr(experiment.model if "." in key else experiment, key.rpartition(".")[2], None)
        found += table[part.name][:-1] if part is not None else ()
    return found
