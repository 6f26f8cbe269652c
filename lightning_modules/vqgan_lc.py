"""VQGAN-LC (paper B): a frozen codebook of up to 100,000 pretrained features and a trained projector."""

from dataclasses import dataclass, field

from lightning_modules.networks import BackboneConfig, CNNConfig, DiscriminatorConfig, PatchGANConfig
from lightning_modules.quantizers import LargeCodebookConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


@dataclass
class VQGANLCConfig(TokenizerConfig):
    name: str = "vqgan_lc"
    codebook_size: int = 100_000
    code_dim: int = 8
    backbone: BackboneConfig = field(default_factory=CNNConfig)
    quantizer: QuantizerConfig = field(default_factory=LargeCodebookConfig)
    discriminator: DiscriminatorConfig = field(default_factory=PatchGANConfig)


class VQGANLC(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s, the codebook is in `quantizers/large_codebook.py`."""

    config: VQGANLCConfig
