"""The options of every stage-1 model; each paper's file has its own defaults."""

from dataclasses import dataclass, field

from lightning_modules.base import ModuleConfig
from lightning_modules.checks import not_negative, require
from lightning_modules.losses import LossConfig
from lightning_modules.metrics import MetricsConfig
from lightning_modules.networks import BackboneConfig, DiscriminatorConfig
from lightning_modules.quantizers import LargeCodebookConfig, QuantizerConfig


@dataclass
class TokenizerConfig(ModuleConfig):
    """A stage-1 model. Any quantizer works with any backbone."""

    codebook_size: int = 1024
    code_dim: int = 256
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def check(self) -> None:
        """Raises ValueError for sizes and ranks that cannot be."""
        not_negative(self.quantizer, "quantizer.")
        self.quantizer.check(self.codebook_size, self.code_dim)
        ranks = self.metrics.code_ranks
        require(
            all(1 <= rank <= self.codebook_size for rank in ranks),
            f"metrics.code_ranks={ranks} must lie between 1 and model.codebook_size={self.codebook_size}",
        )

    def check_tokens(self) -> None:
        """Raises ValueError for a tokenizer whose images have no tokens."""
        require(self.codebook_size > 0, f"quantizer '{self.quantizer.name}' has no codes: its images have no tokens")

    @property
    def reference(self) -> str:
        return "val"

    @property
    def fewest_images(self) -> int:
        return self.metrics.fewest

    @property
    def needs_codebook(self) -> bool:
        return isinstance(self.quantizer, LargeCodebookConfig)

    @property
    def label(self) -> str:
        default = type(self)().quantizer.name
        words = [self.quantizer.name if self.quantizer.name != default else "", self.quantizer.label]
        return "_".join(filter(None, [*words, f"k{self.codebook_size}", f"d{self.code_dim}"]))

    def describe(self) -> dict[str, str]:
        return {
            "model": f"{self.name}: {self.backbone.name} backbone, {self.quantizer.name} quantizer",
            "codebook": f"{self.codebook_size:,} codes of {self.code_dim} dimensions"
            if self.codebook_size
            else f"none: continuous latents of {self.code_dim} dimensions",
        }
