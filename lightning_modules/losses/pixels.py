"""All terms of a generator's loss that compare its reconstructions with the images.

Shapes: B images, H x W pixels.
"""

import torch
from torch import Tensor

from lightning_modules.losses.config import LossConfig
from lightning_modules.losses.perceptual import PerceptualLoss
from lightning_modules.losses.reconstruction import l1_loss, l2_loss, logit_laplace_loss


def pixel_terms(
    config: LossConfig, perceptual: PerceptualLoss | None, prediction: Tensor, reconstruction: Tensor, image: Tensor
) -> dict[str, Tensor]:
    """The terms, unweighted scalars, that `config` gives a weight.

    Args:
        prediction: (B, 3, H, W), the reconstruction, or (B, 6, H, W) with logit-Laplace.
        reconstruction, image: (B, 3, H, W) in [-1, 1].
    """
    terms = {}
    if config.l1:
        terms["l1"] = l1_loss(reconstruction, image)
    if config.l2:
        terms["l2"] = l2_loss(reconstruction, image)
    if config.logit_laplace:
        terms["logit_laplace"] = logit_laplace_loss(prediction, image)
    if perceptual is not None:
        with torch.autocast(image.device.type, enabled=False):  # small maps: bf16 costs time and gains nothing
            terms["perceptual"] = perceptual(reconstruction.float(), image)
    return terms
