"""VQGAN-FC: the baseline with factorized, low-dimensional codes (rows "VQGAN-FC" of paper B's tables).

Paper B credits factorized codes to ViT-VQGAN but leaves out its l2-normalisation, which paper A's Table 4 shows to
be decisive. Both are one key away: `model.quantizer.l2_norm`.
"""

from dataclasses import dataclass, field

from lightning_modules.networks import BackboneConfig, CNNConfig, DiscriminatorConfig, PatchGANConfig
from lightning_modules.quantizers import FactorizedConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


@dataclass
class VQGANFCConfig(TokenizerConfig):
    name: str = "vqgan_fc"
    code_dim: int = 8
    backbone: BackboneConfig = field(default_factory=CNNConfig)
    quantizer: QuantizerConfig = field(default_factory=lambda: FactorizedConfig(l2_norm=False))
    discriminator: DiscriminatorConfig = field(default_factory=PatchGANConfig)


class VQGANFC(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s."""

    config: VQGANFCConfig
