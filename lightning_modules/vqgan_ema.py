"""VQGAN-EMA: the baseline with a codebook of moving averages (rows "VQGAN-EMA" of paper B's tables)."""

from dataclasses import dataclass, field

from lightning_modules.networks import BackboneConfig, CNNConfig, DiscriminatorConfig, PatchGANConfig
from lightning_modules.quantizers import EMAConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


@dataclass
class VQGANEMAConfig(TokenizerConfig):
    name: str = "vqgan_ema"
    code_dim: int = 256
    backbone: BackboneConfig = field(default_factory=CNNConfig)
    quantizer: QuantizerConfig = field(default_factory=EMAConfig)
    discriminator: DiscriminatorConfig = field(default_factory=PatchGANConfig)


class VQGANEMA(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s, the averages are in `quantizers/ema.py`."""

    config: VQGANEMAConfig
