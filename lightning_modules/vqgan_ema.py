"""VQGAN-EMA: the baseline with a codebook of moving averages (rows "VQGAN-EMA" of paper B's tables).

The configuration's defaults are B's baseline of 16,384 codes and 256 tokens on ImageNet 256 (B-Table 2: rFID 3.41).
Loss (of latents z and their codes e), optimizer and length are those of VQGAN-LC; `vqgan_lc.py` explains the terms and
where paper and code differ. The averages move the codes, so that the VQ loss is the commitment term alone:

    L = L1 + LPIPS-VGG + 0.1 ||z - sg(e)||^2 + 0.1 w L_G
"""

from dataclasses import dataclass, field
from typing import ClassVar

from lightning_modules.losses import LossConfig
from lightning_modules.networks import BackboneConfig, DiscriminatorConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.quantizers import EMAConfig, QuantizerConfig
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
class VQGANEMAConfig(TokenizerConfig):
    name: str = "vqgan_ema"
    codebook_size: int = 16_384
    code_dim: int = 256  # taming's; neither B's paper nor its code says
    backbone: BackboneConfig = field(default_factory=paper_b_backbone)
    quantizer: QuantizerConfig = field(
        default_factory=lambda: EMAConfig(
            commitment_weight=1.0,  # code; the paper describes no loss of this baseline
            decay=0.99,  # code, like eps
            eps=1e-5,
            # Departs from B's code: sums are all-reduced. The code's ranks drift apart.
        )
    )
    discriminator: DiscriminatorConfig = field(default_factory=paper_b_discriminator)
    loss: LossConfig = field(default_factory=paper_b_loss)
    optimizer: OptimizerConfig = field(default_factory=paper_b_optimizer)
    batch_size: ClassVar[int] = BATCH_SIZE
    max_steps: ClassVar[int] = MAX_STEPS


class VQGANEMA(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s, the averages are in `quantizers/ema.py`."""

    config: VQGANEMAConfig
