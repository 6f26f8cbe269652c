"""Losses of both stages as plain functions and modules; neither Lightning nor OmegaConf is needed."""

from lightning_modules.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    adaptive_weight,
    hinge_d_loss,
    hinge_g_loss,
    non_saturating_d_loss,
    non_saturating_g_loss,
    r1_penalty,
    with_gradient,
)
from lightning_modules.losses.config import LossConfig
from lightning_modules.losses.perceptual import (
    PERCEPTUAL_NETWORKS,
    EncoderFeatureLoss,
    LPIPSLoss,
    PerceptualLoss,
    build_perceptual,
)
from lightning_modules.losses.pixels import pixel_terms
from lightning_modules.losses.reconstruction import l1_loss, l2_loss, logit_laplace_loss, logit_laplace_mean
from lightning_modules.losses.tokens import TokenLoss, token_loss

__all__ = [
    "ADVERSARIAL_LOSSES",
    "PERCEPTUAL_NETWORKS",
    "EncoderFeatureLoss",
    "LPIPSLoss",
    "LossConfig",
    "PerceptualLoss",
    "TokenLoss",
    "adaptive_weight",
    "build_perceptual",
    "hinge_d_loss",
    "hinge_g_loss",
    "l1_loss",
    "l2_loss",
    "logit_laplace_loss",
    "logit_laplace_mean",
    "non_saturating_d_loss",
    "non_saturating_g_loss",
    "pixel_terms",
    "r1_penalty",
    "token_loss",
    "with_gradient",
]
