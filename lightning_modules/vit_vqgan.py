"""ViT-VQGAN (paper A): ViT encoder and decoder, factorized l2-normalised codes, StyleGAN2 discriminator.

The recipes set the losses of paper A, section 3.3: 1.0 L2 + 0.1 logit-Laplace + 0.1 perceptual + 0.1 adversarial + VQ
with beta 0.25. The configuration's default is L2 and VQ alone, so the discriminator is not built.
"""

from dataclasses import dataclass, field

from lightning_modules.networks import BackboneConfig, DiscriminatorConfig, StyleGANConfig, ViTConfig
from lightning_modules.quantizers import FactorizedConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


@dataclass
class ViTVQGANConfig(TokenizerConfig):
    name: str = "vit_vqgan"
    codebook_size: int = 8192
    code_dim: int = 32
    backbone: BackboneConfig = field(default_factory=ViTConfig)
    quantizer: QuantizerConfig = field(default_factory=FactorizedConfig)
    discriminator: DiscriminatorConfig = field(default_factory=StyleGANConfig)


class ViTVQGAN(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s."""

    config: ViTVQGANConfig
