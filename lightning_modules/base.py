"""The contract that every model answers, so that pipeline, trainer, screens and costs need to know none by name.

A new model is one file here, with a `ModuleConfig` and a `Module`; one line in `MODULES` of experiments/config; and a
recipe. What it does not override has a default that says "nothing special".
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.parts import Part

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
        """Raises ValueError when `upstream`, a model or none, is not what this one stands on: here, none is right."""
        if upstream is not None:
            raise ValueError(f"model '{self.name}' stands on no other model: leave out `upstream`")

    def required(self, upstream: "ModuleConfig | None") -> "ModuleConfig":
        """`upstream`, for the `check_upstream` of a model that stands on another. Raises ValueError: there is none."""
        if upstream is None:
            raise ValueError(
                f"model '{self.name}' needs `upstream: {{recipe: FILE.yaml}}`, the recipe whose model it stands on"
            )
        return upstream

    @property
    def inputs(self) -> str:
        """What a batch holds: "images", or "tokens" by the tokenizer at the bottom of what this model stands on."""
        return "images"

    @property
    def encode_on_the_fly(self) -> bool:
        """Whether tokens are made anew of augmented images at every step, not once."""
        return False

    @property
    def heldout(self) -> float:
        """The share of the training images, labelled ones, that is kept for a validation of its own."""
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
    def num_generated(self) -> int:
        """Images that the evaluation generates, on all devices together."""
        return 0

    @property
    def needs_codebook(self) -> bool:
        """Whether a table of pretrained features is to be made, or read, for the quantizer."""
        return False

    def describe(self) -> dict[str, str]:
        """Lines of the preview and of the start screen that the options alone can tell."""
        return {"model": self.name}


@dataclass(frozen=True)
class Setting:
    """What a module is built of beside its config. `Module.sizes` keeps the numbers among it in checkpoints."""

    image_size: int
    num_classes: int = 0  # of the labels
    codebook_size: int = 0  # of the tokens that it reads, as is
    grid_size: tuple[int, int] = (0, 0)
    upstream: Any = None  # the trained module directly below; None below a tokenizer, and in a restored module
    tokenizer: Any = None  # the trained tokenizer at the bottom
    tokenizer_digest: str = ""
    codebook: Tensor | None = None  # (K, C), where `needs_codebook`


class Module(L.LightningModule):
    """A LightningModule that can be trained, measured, shown, kept and counted by this suite."""

    config: Any
    upstream_data_id: str = ""  # of a restored module: what the model below it was trained on
    layout: ClassVar[Layout] = {}  # TensorBoard's custom scalars
    progress_metric: ClassVar[str] = "loss/generator"  # in progress lines

    @classmethod
    def build(cls, config: Any, setting: Setting) -> Self:
        """The untrained module. Only the initialisation of its weights draws random numbers."""
        raise NotImplementedError

    @classmethod
    def parts(cls, config: Any, setting: Setting) -> list[Part]:
        """Its networks as costs are counted, on the device of the context; [] = costs little beside its upstream."""
        return []

    # ---- what it shows

    def start_screen(self) -> dict[str, str]:
        """Lines of the screen before training, beside those of `ModuleConfig.describe`."""
        return {"parameters": f"{self.num_parameters / 1e6:.2f} M"}

    def rough_seconds(self, batch_size: int) -> float:
        """About how long forward and backward of a batch take here; 0 = not measured. Changes nothing."""
        return 0.0

    def figures(self) -> dict[str, Tensor | Figure]:
        """After each validation: images (3, height, width) in [0, 1], values (n,) for a histogram, or figures."""
        return {}

    # ---- what its record holds

    @property
    def num_parameters(self) -> int:
        """Trained ones, without a discriminator's."""
        return count(self)

    @property
    def training_metrics(self) -> dict[str, float]:
        """Metrics beside those of the validation."""
        return {}

    @property
    def history(self) -> dict[str, list[float]]:
        """Curves."""
        return {}

    def protocols(self) -> dict[str, str]:
        """How each metric was made."""
        return {}

    # ---- what it is given, and what its checkpoint needs

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str, device: torch.device) -> None:
        """Takes the features of the `reference` images from a file in `folder`, made of `batches` if it is missing."""

    def use_classifier(self, classifier: Any) -> None:
        """Takes the `classifier` of the evaluation."""

    def use_tokenizer(self, tokenizer: Any, digest: str) -> None:
        """Takes the tokenizer at the bottom, for a restored module. Raises ValueError: it is another one."""

    is_restorable: ClassVar[bool] = True  # of its checkpoint alone, with the `sizes` that this holds

    @property
    def sizes(self) -> dict[str, Any]:
        """The numbers of its `Setting` that its configuration and data do not tell."""
        return {}

    def on_restore(self, checkpoint: dict[str, Any], path: str) -> None:
        """After the weights of a checkpoint, outside of a training. Raises ValueError that names `path`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.sizes:
            checkpoint["sizes"] = self.sizes


def count(module: nn.Module | None) -> int:
    """Trained parameters."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)
