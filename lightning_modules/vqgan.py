"""VQGAN, the CNN baseline (Esser et al. 2021; rows "VQGAN" of paper B's tables).

CNN encoder and decoder, a wide codebook trained by gradient. The recipes add the perceptual loss and PatchGAN with
hinge loss and adaptive weight; the configuration's default is L2 and VQ alone, so the discriminator is not built.
"""

from dataclasses import dataclass, field

from lightning_modules.networks import BackboneConfig, CNNConfig, DiscriminatorConfig, PatchGANConfig
from lightning_modules.quantizers import QuantizerConfig, VQConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


@dataclass
class VQGANConfig(TokenizerConfig):
    name: str = "vqgan"
    code_dim: int = 256
    backbone: BackboneConfig = field(default_factory=CNNConfig)
    quantizer: QuantizerConfig = field(default_factory=VQConfig)
    discriminator: DiscriminatorConfig = field(default_factory=PatchGANConfig)


class VQGAN(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s."""

    config: VQGANConfig
