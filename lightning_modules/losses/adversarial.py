"""The adversarial game: losses of discriminator and generator, R1 penalty, and taming's adaptive weight.

Logits have any shape: one an image (StyleGAN) or one a patch (PatchGAN). Large means real. Every loss is a
mean.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.distributed import mean_over_ranks


def hinge_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's hinge loss, 0.5 * (mean relu(1 - real) + mean relu(1 + fake)). taming, B."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def hinge_g_loss(fake_logits: Tensor) -> Tensor:
    """Generator's side of the hinge loss, -mean fake."""
    return -fake_logits.mean()


def non_saturating_d_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Discriminator's cross-entropy ("vanilla"), 0.5 * (mean softplus(-real) + mean softplus(fake))."""
    return 0.5 * (F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean())


def non_saturating_g_loss(fake_logits: Tensor) -> Tensor:
    """Generator's non-saturating loss, mean softplus(-fake), as StyleGAN's."""
    return F.softplus(-fake_logits).mean()


# name -> (discriminator's loss of real and fake logits, generator's loss of fake logits)
ADVERSARIAL_LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "hinge": (hinge_d_loss, hinge_g_loss),
    "non_saturating": (non_saturating_d_loss, non_saturating_g_loss),
}


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Squared norm of d logits / d images, summed over each image, averaged over the batch.

    Mescheder et al. 2018; multiply by gamma / 2. It has a graph, so the discriminator can be trained with it.

    Args:
        logits: the discriminator's output on `images`, any shape.
        images: (B, 3, H, W) real images with `requires_grad`, set before the discriminator saw them.

    Raises:
        ValueError: `images` does not require grad.
    """
    if not images.requires_grad:
        raise ValueError("r1_penalty: images has no grad. Call images.requires_grad_() before the discriminator.")
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def adaptive_weight(
    image: Tensor,
    last_layer: Tensor,
    reconstruction_gradient: Tensor,
    adversarial_gradient: Tensor,
    max_weight: float = 1e4,
) -> Tensor:
    """|grad of reconstruction loss| / (|grad of adversarial loss| + 1e-4) at the decoder's last layer.

    Multiplying the adversarial loss by it gives both losses gradients of the same size there (Esser et al. 2021,
    equation 7, with taming's constants). Of the global batch: the ranks' gradients are averaged. Both losses' gradients
    at `image`, of its shape, are pulled back through what lies between it and `last_layer`, and nothing else.
    Detached, in [0, `max_weight`]; the graph is kept.
    """

    def norm(gradient: Tensor) -> Tensor:
        size = gradient.abs().amax().clamp_min(torch.finfo(gradient.dtype).tiny)  # float16 has no room for small ones
        pulled = torch.autograd.grad(image, last_layer, (gradient / size).to(image.dtype), retain_graph=True)[0]
        return mean_over_ranks(pulled.float() * size).norm()

    return (norm(reconstruction_gradient) / (norm(adversarial_gradient) + 1e-4)).clamp(0, max_weight).detach()


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return grads[0] * gradient, None, None


def with_gradient(x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """The scalar `value`, a function of x whose gradient there is known, with a graph that leads to x alone."""
    return _WithGradient.apply(x, value, gradient)
