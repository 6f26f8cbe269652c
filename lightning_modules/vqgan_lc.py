"""VQGAN-LC (paper B, arXiv 2406.11837): a frozen codebook of up to 100,000 pretrained features and a trained projector.

The configuration's defaults are B's model of 100,000 codes and 256 tokens on ImageNet 256 (B-Table 2: rFID 2.62), whose
loss is, with latents z, their projected codes e and taming's adaptive weight w = |grad L_rec| / |grad L_G|,

    L = L_rec + 0.1 (1.0 ||z - sg(e)||^2 + 0.33 ||sg(z) - e||^2) + 0.1 w L_G,    L_rec = L1 + LPIPS-VGG,

L_G from step 50,000 on. Where paper and official code differ, the note at a key says which was taken, and what the
other has. B trains its baselines, `vqgan.py`, `vqgan_fc.py` and `vqgan_ema.py`, in the same way: they take from here
the functions `paper_b_*` and the lengths.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from lightning_modules.losses import LossConfig
from lightning_modules.networks import BackboneConfig, CNNConfig, DiscriminatorConfig, PatchGANConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.quantizers import LargeCodebookConfig, QuantizerConfig
from lightning_modules.tokenizer import Tokenizer, TokenizerConfig

BATCH_SIZE = 256  # author (8 on each of 32 GPUs); README's command: 256 on each of 8, which makes 2,048
MAX_STEPS = 100_080  # 20 epochs of 5,004 steps (paper, released model); README's command: 100 epochs


def paper_b_backbone() -> BackboneConfig:
    return CNNConfig(  # taming's U-Net at f16, in paper and code
        channels=128, channel_multipliers=[1, 1, 2, 2, 4], num_res_blocks=2, attention_resolutions=[16]
    )


def paper_b_discriminator() -> DiscriminatorConfig:
    return PatchGANConfig(channels=64, num_layers=2)  # code; paper: the original VQGAN's, which has 3 layers


def paper_b_loss() -> LossConfig:
    return LossConfig(
        l1=1.0,  # code; paper: squared L2
        perceptual=1.0,  # code; the paper gives no weight
        perceptual_network="lpips-vgg",  # both
        quantizer=0.1,  # code (rate_q); the paper has no factor before its VQ loss
        adversarial=0.1,  # code (rate_d), times the adaptive weight; the paper gives none, taming has 0.8
        adversarial_loss="hinge",
        adaptive_weight=True,
        discriminator_start=50_000,  # README; argparse's default is 10,000, for both
        adversarial_start=50_000,
    )


def paper_b_optimizer() -> OptimizerConfig:
    return OptimizerConfig(
        lr=5e-4,  # paper, README; runTrainVQ.sh: 1e-4
        min_lr=0.0,  # code; the paper's "half-cycle cosine" names no floor
        betas=[0.5, 0.9],  # code; the paper says Adam
        eps=1e-7,  # code
        warmup_steps=25_020,  # both: 5 epochs
        decay="cosine",
    )


@dataclass
class VQGANLCConfig(TokenizerConfig):
    name: str = "vqgan_lc"
    codebook_size: int = 100_000
    code_dim: int = 8  # f16, in paper and code; the released f8 model has 4
    backbone: BackboneConfig = field(default_factory=paper_b_backbone)
    quantizer: QuantizerConfig = field(
        default_factory=lambda: LargeCodebookConfig(
            commitment_weight=1.0,  # alpha and beta of both (taming's "legacy" order); VQ-VAE's order: 0.33, 1.0
            codebook_weight=0.33,
            # The features: `CodebookSource`. k-means in each class is the code's; the paper's is one over all.
        )
    )
    discriminator: DiscriminatorConfig = field(default_factory=paper_b_discriminator)
    loss: LossConfig = field(default_factory=paper_b_loss)
    optimizer: OptimizerConfig = field(default_factory=paper_b_optimizer)
    batch_size: ClassVar[int] = BATCH_SIZE
    max_steps: ClassVar[int] = MAX_STEPS


class VQGANLC(Tokenizer):
    """See the module's docstring; the loop is `Tokenizer`'s, the codebook is in `quantizers/large_codebook.py`."""

    config: VQGANLCConfig
