"""Pixel losses of (reconstruction, image).

Shapes: B images, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# DALL-E A.3: keeps the mapped pixel away from 0 and 1, where the logit is infinite.
LOGIT_LAPLACE_EPSILON = 0.1


def l1_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean absolute difference over all elements, on the range that is given.

    In training that is [-1, 1], as in taming. It is twice the value on [0, 1] pixels, which A-Table 4
    reports.
    """
    return F.l1_loss(reconstruction, image)


def l2_loss(reconstruction: Tensor, image: Tensor) -> Tensor:
    """Mean squared difference over all elements, on the range that is given.

    In training that is [-1, 1]. It is four times the value on [0, 1] pixels, which A-Tables 1 and 4 report.
    """
    return F.mse_loss(reconstruction, image)


def logit_laplace_log_density(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of f(x | mu, b) = 1 / (2 b x (1 - x)) * exp(-|logit(x) - mu| / b), for x in (0, 1), elementwise.

    The density of a sigmoid of a Laplace variable (Ramesh et al. 2021, equation 2 of appendix A.3);
    `log_scale` is ln b.
    """
    normalizer = math.log(2) + log_scale + torch.log(x) + torch.log1p(-x)
    return -normalizer - (torch.logit(x) - mean).abs() * torch.exp(-log_scale)


def _mean_and_log_scale(prediction: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 6, H, W) -> mu and ln b, (B, 3, H, W) each, float32: b spans orders of magnitude and enters through exp()."""
    if prediction.shape[1] != 6:
        raise ValueError(
            f"logit-Laplace: the prediction has {prediction.shape[1]} channels, not 6: 3 means, then 3 log scales"
        )
    mean, log_scale = prediction.float().chunk(2, dim=1)
    return mean, log_scale


def logit_laplace_loss(prediction: Tensor, image: Tensor) -> Tensor:
    """Mean negative log-likelihood of the pixels, in nats a channel value; negative when the fit is good.

    Ramesh et al. 2021 (DALL-E), appendix A.3. A 3.2 names this loss but not its epsilon, nor whether b is
    predicted; DALL-E predicts it and has epsilon 0.1. The values of A-Tables 1 and 4 (about -2.5) are of this
    kind.

    Args:
        prediction: (B, 6, H, W) mu and ln b on the logit scale.
        image: (B, 3, H, W) in [-1, 1].

    Raises:
        ValueError: the prediction does not have 6 channels.
    """
    mean, log_scale = _mean_and_log_scale(prediction)
    pixel = (image.float() + 1) / 2
    x = (1 - 2 * LOGIT_LAPLACE_EPSILON) * pixel + LOGIT_LAPLACE_EPSILON  # in [0.1, 0.9]
    return -logit_laplace_log_density(x, mean, log_scale).mean()


def logit_laplace_mean(prediction: Tensor) -> Tensor:
    """The image that a logit-Laplace prediction stands for: sigmoid(mu), mapped back to [-1, 1].

    (B, 6, H, W) -> (B, 3, H, W). DALL-E clamps here; the values, which lie in [-1.25, 1.25], are left as they are,
    because a clamp would stop the other losses' gradient at saturated pixels. Metrics and image files clamp.

    Raises:
        ValueError: the prediction does not have 6 channels.
    """
    mean, _ = _mean_and_log_scale(prediction)
    pixel = (torch.sigmoid(mean) - LOGIT_LAPLACE_EPSILON) / (1 - 2 * LOGIT_LAPLACE_EPSILON)
    return 2 * pixel - 1
