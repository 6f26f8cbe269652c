"""ViT-VQGAN (paper A, arXiv 2110.04627): ViT encoder and decoder, factorized l2-normalised codes, StyleGAN2's
discriminator.

The configuration's defaults are the row "default" of A-Table 4 (Base-Base, ImageNet 256, 1,024 tokens: FID 1.55), whose
loss is A's total of section 3.3,

    L = L_VQ + 0.1 L_adversarial + 0.1 L_perceptual + 0.1 L_logit-Laplace + 1.0 L_2,
    L_VQ = ||sg(z) - e||^2 + 0.25 ||z - sg(e)||^2,

with l2-normalised latents z and codes e, and L_2 of pixels in [0, 1]. A published no code.
What it leaves open has a note: "unofficial code" is thuanz123/enhancing-transformers.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from lightning_modules.losses import LossConfig
from lightning_modules.networks import BackboneConfig, DiscriminatorConfig, StyleGANConfig, ViTConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.quantizers import FactorizedConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig


def paper_a_loss() -> LossConfig:
    return LossConfig(
        l2=0.25,  # paper: 1.0, taken on [0, 1], as its tables are; squares on [-1, 1] are four times as large
        logit_laplace=0.1,  # paper; the unofficial code and Parti, by the same team, leave it out with its sigmoid
        perceptual=0.1,  # paper; none for A's linear probes
        perceptual_network="lpips-vgg",  # paper: "VGG", in the unofficial code LPIPS
        quantizer=1.0,  # paper
        adversarial=0.1,  # paper
        adversarial_loss="non_saturating",  # unofficial code and StyleGAN2; not stated in A, like all below
        adaptive_weight=False,  # unofficial code
        discriminator_start=0,  # unofficial code
        adversarial_start=0,
        r1=10.0,  # unofficial code
        r1_every=16,
    )


def paper_a_optimizer() -> OptimizerConfig:
    """All of it the paper's; the unofficial code has no schedule."""
    return OptimizerConfig(
        lr=1e-4, min_lr=5e-5, betas=[0.9, 0.99], weight_decay=1e-4, warmup_steps=50_000, decay="cosine"
    )


@dataclass
class ViTVQGANConfig(TokenizerConfig):
    name: str = "vit_vqgan"
    codebook_size: int = 8192
    code_dim: int = 32
    backbone: BackboneConfig = field(
        # A states neither positions (learned here) nor activation (GELU) nor the tanh head's width: see `ViTConfig`.
        default_factory=lambda: ViTConfig(patch_size=8, encoder_size="base", decoder_size="base")
    )
    quantizer: QuantizerConfig = field(
        default_factory=lambda: FactorizedConfig(l2_norm=True, commitment_weight=0.25, codebook_weight=1.0)
    )
    discriminator: DiscriminatorConfig = field(default_factory=StyleGANConfig)
    loss: LossConfig = field(default_factory=paper_a_loss)
    optimizer: OptimizerConfig = field(default_factory=paper_a_optimizer)
    batch_size: ClassVar[int] = 256
    max_steps: ClassVar[int] = 500_000


class ViTVQGAN(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s."""

    config: ViTVQGANConfig
