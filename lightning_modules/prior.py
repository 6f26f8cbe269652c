"""Stage 2's contract: what every model that generates images through a tokenizer shares, whatever it is a model of.

A prior turns random numbers into tokens (`draw`); the tokenizer turns tokens into images, and the metrics compare those
with real ones. GPT and VIM draw tokens; LDM, DiT and SiT draw latents, which are quantized once, at the end.
How a trained one is used, generator.py says.

Shapes: B images, T tokens of an image, H x W pixels.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_modules.base import Layout, ModuleConfig, Setting
from lightning_modules.checks import require
from lightning_modules.distributed import draw_rows
from lightning_modules.generator import Generator
from lightning_modules.graphs import replay_training_calls
from lightning_modules.metrics.generation import Classifier, GenerationConfig, GenerationMetrics
from lightning_modules.tokenizer_config import TokenizerConfig

NUM_SHOWN = 64  # images in TensorBoard
LAYOUT: Layout = {
    "generation": {
        "FID": ["Multiline", ["val/fid"]],
        "IS": ["Multiline", ["val/is"]],
        "utilisation, % of codes": ["Multiline", ["val/usage/generated"]],
    }
}


@dataclass
class PriorConfig(ModuleConfig):
    """`label_dropout`: share of training labels replaced by "no class", for classifier-free guidance.

    `encode_on_the_fly`: encode augmented images at every step, instead of reading what was encoded once.
    """

    class_conditional: bool = True
    label_dropout: float = 0.0
    encode_on_the_fly: bool = True
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    generates: ClassVar[bool] = True

    def check(self) -> None:
        """Raises ValueError for values that do not go together."""
        dropout = self.label_dropout
        require(0 <= dropout <= 1, f"label_dropout={dropout} must be in [0, 1]")
        require(self.class_conditional or not dropout, "label_dropout needs model.class_conditional=true")
        require(
            self.class_conditional or not self.generation.acceptance,
            "generation.acceptance needs model.class_conditional=true: a class to look like",
        )

    def check_sampling(self, sampling: Any) -> None:
        """Raises ValueError where images of this model cannot be drawn by these options."""
        require(
            sampling.guidance_scale == 1 or self.label_dropout > 0,
            f"sampling.guidance_scale={sampling.guidance_scale} needs a model that was trained without its label "
            "now and then: set model.label_dropout, for example to 0.1",
        )

    def check_upstream(self, upstream: ModuleConfig | None) -> None:
        """Raises ValueError when `upstream` makes no tokens."""
        if not isinstance(upstream := self.required(upstream), TokenizerConfig):
            raise ValueError(f"model '{self.name}' needs a tokenizer's recipe upstream, not {upstream.name}'s")
        upstream.check_tokens()

    @property
    def classifier(self) -> str:
        return self.generation.classifier if self.generation.acceptance else ""

    @property
    def reference(self) -> str:
        return self.generation.reference if self.generation.num_samples else ""

    @property
    def num_generated(self) -> int:
        return self.generation.num_samples


class Prior(Generator):
    """A `Generator` with metrics: what is measured, shown and kept of any prior.

    The classifier of acceptance rates is set by `use_classifier` and is not part of the module's weights.

    Build the trained network before calling this `__init__`: the metrics' networks draw random numbers, too.
    """

    classifier: Classifier | None = None
    network: Any  # that is trained

    def __init__(self, config: PriorConfig, setting: Setting) -> None:
        super().__init__()
        self.config = config
        self.grid_size, self.codebook_size = setting.grid_size, setting.codebook_size
        self.num_classes, self.image_size = setting.num_classes, setting.image_size
        self.num_conditions = setting.num_classes if config.class_conditional else 0  # 0 = unconditional
        if not setting.for_use:
            self.generation = GenerationMetrics(config.generation, setting.codebook_size, setting.image_size)
        self.metric_protocols: dict[str, str] = {}

    @classmethod
    def build(cls, config: Any, setting: Setting) -> Self:
        module = cls(config, setting)
        if setting.tokenizer is not None:
            module.use_tokenizer(setting.tokenizer, setting.tokenizer_digest)
        return module

    def use_classifier(self, classifier: Classifier) -> None:
        """Sets the classifier that acceptance rates go by."""
        object.__setattr__(self, "classifier", classifier)

    def labels_of(self, batch: dict[str, Tensor]) -> Tensor | None:
        """The labels (B,) that it is told; None of an unconditional model."""
        return batch["label"] if self.config.class_conditional else None

    def capture_steps(self) -> None:
        replay_training_calls(self.network)

    # ---- generated images, measured

    def sample_images(self) -> Iterator[tuple[list[int], Tensor, Tensor, Tensor]]:
        """This rank's share of the candidates, classes in turn, in batches for `GenerationMetrics.measure`."""
        config = self.config.generation
        numbers = range(self.global_rank, config.num_candidates, self.trainer.world_size)
        with self.progress("image", len(numbers)) as show:
            for first in range(0, len(numbers), config.batch_size):
                ids = list(numbers[first : first + config.batch_size])
                yield ids, *self.sample(ids, config.seed)
                show(len(ids))

    def measure_generation(self) -> dict[str, Tensor]:
        """Metrics of generated images, at the end of a validation; {} where there is nothing to compare them with."""
        if self.tokenizer is None or not self.config.generation.num_samples or not self.generation.has_reference:
            return {}
        values = self.generation.measure(self.sample_images(), self.classifier)
        self.metric_protocols |= self.generation.protocols(self.config.sampling.id)
        return values

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str, device: torch.device) -> None:
        self.generation.fidelity.to(device)
        self.generation.use_reference(folder, batches, key)

    # ---- what is shown, and what a record and a checkpoint need

    def start_screen(self) -> dict[str, str]:
        rows, columns = self.grid_size
        tokens = f"{rows * columns} ({rows} x {columns}) of {self.codebook_size:,} codes"
        classes = f"{self.num_conditions or 'none, unconditional'}"
        return {"tokens per image": tokens, "classes": classes} | super().start_screen()

    def protocols(self) -> dict[str, str]:
        return dict(self.metric_protocols)

    @property
    def sizes(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("codebook_size", "grid_size", "num_classes", "image_size")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["tokenizer_digest"] = self.tokenizer_digest

    def on_restore(self, checkpoint: dict[str, Any], path: str) -> None:
        self.tokenizer_digest = checkpoint["tokenizer_digest"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError when the tokens are now those of another tokenizer."""
        self.expect_tokenizer(checkpoint["tokenizer_digest"])


def drop_labels(labels: Tensor, share: float, no_class: int) -> Tensor:
    """Replaces a share of the labels (B,) by "no class", for classifier-free guidance."""
    uniform = draw_rows(lambda n: torch.rand(n, device=labels.device), len(labels))
    return labels.masked_fill(uniform < share, no_class)
