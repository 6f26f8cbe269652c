"""The contract of a model: pipeline, trainer, screens and costs call these methods and know no model by name.

A new model is one file here, with a `ModuleConfig` and a `Module`; one line in `MODULES` of models.py; and a recipe.
Every method and property has a default, which says "nothing special".
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.parts import Part
from lightning_modules.pretrained import Pretrained

Layout = dict[str, dict[str, list[Any]]]


@dataclass
class ModuleConfig:
    """A model's options, and what it asks of the pipeline before it can be built.

    The walker of experiments/config calls `check` and puts the path of the section before the message.
    """

    name: str = ""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    batch_size: ClassVar[int] = 64  # of the paper's recipe: the default of data.batch_size, and of trainer.max_steps
    max_steps: ClassVar[int] = 1000
    can_shard: ClassVar[bool] = False  # runtime.strategy=fsdp works
    generates: ClassVar[bool] = False  # its module has `sample`

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""

    def check_upstream(self, upstream: "ModuleConfig | None") -> None:
        """Raises ValueError unless this model can stand on `upstream` (None: on no model). By default on none."""
        if upstream is not None:
            raise ValueError(f"model '{self.name}' stands on no other model: leave out `upstream`")

    def check_data(self, data: Any) -> None:
        """Raises ValueError, with the key, where it cannot be trained on images and batches of these options."""

    def check_ready(self, num_classes: int) -> None:
        """Called before any training, of what it stands on, too: raises ValueError where it cannot tell so many classes
        of images, OSError where pretrained weights that it starts from cannot be had."""

    def required(self, upstream: "ModuleConfig | None") -> "ModuleConfig":
        """Returns `upstream`, for the `check_upstream` of a model that needs one. Raises ValueError when it is None."""
        if upstream is None:
            raise ValueError(
                f"model '{self.name}' needs `upstream: {{recipe: FILE.yaml}}`, the recipe whose model it stands on"
            )
        return upstream

    @property
    def inputs(self) -> str:
        """What a batch holds: "images", or "tokens" or "latents" of the tokenizer at the bottom of the upstreams."""
        return "images"

    @property
    def encode_on_the_fly(self) -> bool:
        """Whether augmented images are encoded at every step, instead of once before the training."""
        return False

    @property
    def decodes(self) -> bool:
        """Whether tokens are decoded to images at every step."""
        return False

    @property
    def latents_stored(self) -> str:
        """What latents that are made once are kept as: float32 or float16."""
        return "float32"

    @property
    def heldout(self) -> float:
        """The share, in [0, 1), of the labelled training images that is held out for a validation of its own."""
        return 0.0

    @property
    def classifier(self) -> str:
        """The name of the image classifier that the evaluation needs; "" = none."""
        return ""

    @property
    def reference(self) -> str:
        """The split, train or val, that FID compares with; "" = the evaluation needs no reference."""
        return ""

    @property
    def fewest_images(self) -> int:
        """Validation images that the metrics take at least: two have a covariance."""
        return 2

    @property
    def num_generated(self) -> int:
        """Images that the evaluation generates, on all devices together."""
        return 0

    @property
    def is_control(self) -> bool:
        """Whether its numbers are a bound on those of the other rows of a table, with which it does not compete."""
        return False

    @property
    def needs_codebook(self) -> bool:
        """Whether the quantizer needs a table of pretrained features, which is then built, or read from a file."""
        return False

    def describe(self) -> dict[str, str]:
        """Lines (label: text) of the preview and of the start screen that follow from the options alone."""
        return {"model": self.name}

    @property
    def label(self) -> str:
        """What tells runs of one recipe apart, in their names."""
        return ""


@dataclass(frozen=True)
class Setting:
    """What a module is built from, beside its config. Checkpoints keep the numbers among it as `Module.sizes`."""

    image_size: int
    num_classes: int = 0  # of the labels
    codebook_size: int = 0  # of the tokens that it reads
    grid_size: tuple[int, int] = (0, 0)  # of these tokens: rows, columns
    upstream: Any = None  # the trained module directly below; None below a tokenizer, and in a restored module
    tokenizer: Any = None  # the trained tokenizer at the bottom
    tokenizer_digest: str = ""
    codebook: Tensor | None = None  # (K, C), where `needs_codebook`
    code_dim: int = 0  # of the latents that it reads
    for_use: bool = False  # built without what only training and evaluation need


class Module(Pretrained):
    """A LightningModule that can be trained, measured, shown, kept and counted by this suite."""

    config: Any
    layout: ClassVar[Layout] = {}  # TensorBoard's custom scalars
    progress_metric: ClassVar[str] = "loss/generator"  # in progress lines

    @classmethod
    def build(cls, config: Any, setting: Setting) -> Self:
        """Returns the untrained module. It draws random numbers only to initialise its weights."""
        return cls(config, setting)

    @classmethod
    def parts(cls, config: Any, setting: Setting) -> list[Part]:
        """Its networks, for counting costs, on torch's default device; [] = costs little beside its upstream."""
        return []

    def capture_steps(self) -> None:
        """Called once at the start of a training on one GPU whose steps may become CUDA graphs (`graphs`)."""

    # ---- what it shows

    def start_screen(self) -> dict[str, str]:
        """Lines (label: text) of the screen before training, beside those of `ModuleConfig.describe`."""
        return {"parameters": f"{self.num_parameters / 1e6:.2f} M"}

    def rough_loss(self, num_images: int) -> Tensor | None:
        """Of made-up images: what is timed, forward and back, to say how long a training takes. None: nothing is."""
        return None

    def figures(self) -> dict[str, Any]:
        """For TensorBoard after a validation: images (3, height, width) in [0, 1], values (n,) to count, or figures."""
        return {}

    shown: Tensor | None = None  # the first validation images (B, 3, H, W) in [-1, 1], while it is trained

    def pictures(self) -> dict[str, Any]:
        """The same, in the course of the training as well: reconstructions of `shown`. Called in eval mode; draws no
        random numbers."""
        return {}

    @staticmethod
    def progress(unit: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A function to call with how many more of `total` are done. Silent; a training puts its own in its place."""
        return nullcontext(lambda more: None)

    # ---- how its networks are run

    def hot_calls(self, compiled: bool) -> list[tuple[nn.Module, str]]:
        """(network, method) of the calls that take most of a step, for `trainer.memory_format` and `trainer.compile`.

        With `compiled` those that torch.compile can have.
        """
        return []

    # ---- what its record holds

    @property
    def num_parameters(self) -> int:
        """Number of trained parameters, without those of a discriminator."""
        return count(self)

    @property
    def training_metrics(self) -> dict[str, float]:
        """Metrics that were measured in training: name -> value."""
        return {}

    @property
    def history(self) -> dict[str, list[float]]:
        """Curves, such as the usage by epoch: name -> values in order."""
        return {}

    def protocols(self) -> dict[str, str]:
        """How each metric was measured: name -> protocol id."""
        return {}

    # ---- what it is given, and what its checkpoint needs

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str, device: torch.device) -> None:
        """Reads the features of the `reference` images from a file, or makes the file of `batches` if it is missing.

        Args:
            folder: where the files of all data sets are.
            batches: (B, 3, H, W) in [-1, 1], all reference images in order; not read when the file is there.
            key: names the images.
            device: where the features are computed.
        """

    def use_classifier(self, classifier: Any) -> None:
        """Sets the image classifier that the evaluation needs; see `ModuleConfig.classifier`."""

    def use_tokenizer(self, tokenizer: Any, digest: str) -> None:
        """Sets the tokenizer of a restored module. Raises ValueError when it is not the one of the training."""

    @property
    def upstream_data_id(self) -> str:
        """Of a restored module: the data id of the run that it stands on; "" where its file does not tell."""
        others = self.origin.get("images", {}).get("others", [])  # left out where it is the model's own
        return others[0] if others else self.origin.get("data_id", "")

    @property
    def class_names(self) -> list[str]:
        """Of a restored module: of its training images, in the order of the labels; [] where its file does not tell."""
        return self.origin.get("images", {}).get("classes", [])

    is_restorable: ClassVar[bool] = True  # from its checkpoint alone, with the `sizes` in it

    @property
    def sizes(self) -> dict[str, Any]:
        """The numbers of its `Setting` that follow neither from its configuration nor from its data."""
        return {}

    def on_restore(self, checkpoint: dict[str, Any], path: str) -> None:
        """Called after a checkpoint's weights are loaded outside of training. Raises ValueError that names `path`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.sizes:
            checkpoint["sizes"] = self.sizes


def count(module: nn.Module | None) -> int:
    """Number of trained parameters of `module`; 0 for None."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)
