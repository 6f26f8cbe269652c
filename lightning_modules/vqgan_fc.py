"""VQGAN-FC: the baseline with factorized, low-dimensional codes (rows "VQGAN-FC" of paper B's tables).

The configuration's defaults are B's baseline of 16,384 codes and 256 tokens on ImageNet 256 (B-Table 2: rFID 4.29).
Loss (of latents z and their codes e), optimizer and length are those of VQGAN-LC; `vqgan_lc.py` explains the terms and
where paper and code differ:

    L = L1 + LPIPS-VGG + 0.1 (1.0 ||z - sg(e)||^2 + 0.33 ||sg(z) - e||^2) + 0.1 w L_G
"""

from dataclasses import dataclass, field
from typing import ClassVar

from lightning_modules.losses import LossConfig
from lightning_modules.networks import BackboneConfig, DiscriminatorConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.quantizers import FactorizedConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig
from lightning_modules.vqgan_lc import (
    BATCH_SIZE,
    MAX_STEPS,
    paper_b_backbone,
    paper_b_discriminator,
    paper_b_loss,
    paper_b_optimizer,
)


@dataclass
class VQGANFCConfig(TokenizerConfig):
    name: str = "vqgan_fc"
    codebook_size: int = 16_384
    code_dim: int = 8  # B's paper: far fewer than the latents have; 8 is that of its LC
    backbone: BackboneConfig = field(default_factory=paper_b_backbone)
    quantizer: QuantizerConfig = field(
        default_factory=lambda: FactorizedConfig(
            l2_norm=False,  # code; paper A, whose idea FC is, normalises, and its Table 4 shows that to be decisive
            commitment_weight=1.0,  # both (taming's "legacy" order); VQ-VAE's order: 0.33, 1.0
            codebook_weight=0.33,
        )
    )
    discriminator: DiscriminatorConfig = field(default_factory=paper_b_discriminator)
    loss: LossConfig = field(default_factory=paper_b_loss)
    optimizer: OptimizerConfig = field(default_factory=paper_b_optimizer)
    batch_size: ClassVar[int] = BATCH_SIZE
    max_steps: ClassVar[int] = MAX_STEPS


class VQGANFC(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s."""

    config: VQGANFCConfig
