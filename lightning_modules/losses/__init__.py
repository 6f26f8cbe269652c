"""Losses of both stages as plain functions and modules; neither Lightning nor OmegaConf is needed."""

from lightning_modules.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    adaptive_weight,
    hinge_d_loss,
    non_saturating_d_loss,
    r1_penalty,
    with_gradient,
)
from lightning_modules.losses.config import LossConfig
from lightning_modules.losses.perceptual import build_perceptual
from lightning_modules.losses.reconstruction import l1_loss, l2_loss, logit_laplace_loss, logit_laplace_mean

__all__ = [
    "ADVERSARIAL_LOSSES",
    "LossConfig",
    "adaptive_weight",
    "build_perceptual",
    "hinge_d_loss",
    "l1_loss",
    "l2_loss",
    "logit_laplace_loss",
    "logit_laplace_mean",
    "non_saturating_d_loss",
    "r1_penalty",
    "with_gradient",
]
