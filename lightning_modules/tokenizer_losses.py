"""Both sides of a `Tokenizer`'s loss: what a step computes of a batch and its reconstructions.

Tensors in, tensors out: nothing here logs, waits for a device or exchanges more than gradients and batch statistics.

Shapes: B images, H x W pixels.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_modules import losses
from lightning_modules.losses.pixels import pixel_terms

Terms = dict[str, Tensor]  # scalars by name


def generator_terms(
    module: Any, image: Tensor, output: Any, adversarial: bool, weigh: bool, scale: Tensor | None = None
) -> Terms:
    """The loss's terms, unweighted, and `generator`, their weighted sum, which alone has a gradient.

    Without `weigh` that is one sum with one graph. With it the gradients of both sides, reconstruction and adversarial,
    are taken apart at the prediction, as the adaptive weight needs them, and then joined (`with_gradient`).

    Args:
        module: the `Tokenizer`; `module.balance`, the adaptive weight, is set where it is computed anew.
        image: (B, 3, H, W) in [-1, 1].
        output: the `TokenizerOutput` of `image`.
        adversarial: whether the discriminator takes part.
        weigh: whether the adaptive weight is computed. Then both sides' gradients are taken at the prediction, which
            saves walking back twice through the networks after it.
        scale: multiplies losses whose gradients pass through networks in float16.
    """
    config = module.config.loss
    prediction = output.prediction.detach().requires_grad_() if weigh else output.prediction

    def reconstruction() -> Tensor:  # with a graph of its own for each of both sides
        return module.to_image(prediction) if weigh else output.reconstruction

    terms = pixel_terms(config, module.perceptual, prediction, reconstruction(), image)
    loss = sum((getattr(config, name) * term for name, term in terms.items()), start=image.new_zeros(()))
    extra: Terms = {}
    if adversarial:
        module.discriminator.requires_grad_(False)
        logits = module.discriminator(reconstruction()).float()
        module.discriminator.requires_grad_(True)
        terms["adversarial"] = module.adversarial_loss(logits)
        sides = [gradient_at(prediction, side, scale) for side in (loss, terms["adversarial"])] if weigh else []
        if weigh:  # at the pixels alone: no adversarial gradient reaches the scales that logit-Laplace predicts, too
            pixels, last_layer = output.prediction[:, :3], module.decoder.last_layer
            found = losses.adaptive_weight(pixels, last_layer, sides[0][:, :3], sides[1][:, :3])
            if scale is not None:  # with a scale that was too large the step will be skipped
                found = torch.where(found.isfinite(), found, module.balance)
            module.balance.copy_(found)
        extra["weight"] = config.adversarial * module.balance
        loss = loss + extra["weight"] * terms["adversarial"]
        if weigh:
            gradient = sides[0] + extra["weight"] * sides[1]
            loss = losses.with_gradient(output.prediction, loss.detach(), gradient)
    terms["quantizer"] = output.quantizer_loss
    loss = loss + config.quantizer * output.quantizer_loss
    return detached(terms) | {"generator": loss} | extra


def gradient_at(x: Tensor, loss: Tensor, scale: Tensor | None) -> Tensor:
    if scale is None:
        return torch.autograd.grad(loss, x)[0]
    return torch.autograd.grad(loss * scale, x)[0] / scale


def critic_terms(module: Any, real: Tensor, fake: Tensor, r1: bool) -> Terms:
    """The discriminator's loss on real images and detached reconstructions, (B, 3, H, W) each, in `critic`, which
    alone has a gradient; its terms, the penalty with `r1` alone; and its accuracy."""
    config = module.config.loss
    real = real.detach().requires_grad_(r1)
    logits_real, logits_fake = (logits.float() for logits in module.discriminator.pair(real, fake))
    loss = module.discriminator_loss(logits_real, logits_fake)
    terms = {"discriminator": loss}
    if r1:
        terms["r1"] = losses.r1_penalty(logits_real, real)
        loss = loss + config.r1 / 2 * config.r1_every * terms["r1"]
    accuracy = ((logits_real > 0).float().mean() + (logits_fake < 0).float().mean()) / 2
    return detached(terms) | {"critic": loss, "accuracy": accuracy}


def detached(terms: Terms) -> Terms:
    return {name: term.detach() for name, term in terms.items()}
