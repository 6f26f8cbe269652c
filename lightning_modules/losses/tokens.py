"""Negative log-likelihood of tokens under a large vocabulary, without the logits of all of them at once.

Shapes: N tokens of a batch, D width, V vocabulary, C tokens of a chunk.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32


class TokenLoss(NamedTuple):
    """`mean` is to be differentiated; `per_token` (N,), without gradient, is for logs, such as by position."""

    mean: Tensor
    per_token: Tensor


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Computes the gradients chunk by chunk in forward, where each chunk's softmax is at hand; backward scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, grad: bool) -> Any:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        w = weight.to(dtype)
        need_hidden, need_weight = (grad and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros_like(weight) if need_weight else None
        per_token = torch.empty(len(hidden), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
        # Reused by all chunks: fresh memory of this size costs page faults.
        buffer = hidden.new_empty(min(chunk, len(hidden)), len(weight), dtype=dtype)
        with torch.autocast(device, enabled=False):
            for first in range(0, len(hidden), chunk):
                part = slice(first, first + chunk)
                h, target = hidden[part].to(dtype), targets[part, None]
                logits = torch.mm(h, w.t(), out=buffer[: len(h)]).to(per_token.dtype)  # (C, V)
                at_target = logits.gather(1, target)
                largest = logits.amax(1, keepdim=True)
                total = logits.sub_(largest).exp_().sum(1, keepdim=True)  # (C, 1)
                per_token[part] = (total.log() + largest - at_target)[:, 0]
                if not (need_hidden or need_weight):
                    continue
                logits.mul_(1 / (total * len(hidden)))  # softmax / N
                logits.scatter_add_(1, target, logits.new_full((1, 1), -1 / len(hidden)).expand_as(target))
                gradient = logits.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = gradient @ w
                if grad_weight is not None and grad_weight.dtype == dtype:
                    grad_weight.addmm_(gradient.t(), h)
                elif grad_weight is not None:
                    grad_weight += gradient.t() @ h
        ctx.gradients = grad_hidden, grad_weight
        ctx.mark_non_differentiable(per_token)
        return per_token.mean(), per_token

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("token_loss can be differentiated once: its gradients are made in forward")
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        scaled = (None if gradient is None else gradient.mul_(grads[0]) for gradient in (grad_hidden, grad_weight))
        return *scaled, None, None, None


def token_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int = 0) -> TokenLoss:
    """Cross entropy in nats of `targets` (N,) under logits `hidden @ weight.T`, (N, D) by (V, D), mean and each.

    Exactly `F.cross_entropy(hidden @ weight.T, targets)`, with the memory of `chunk` rows of logits; 0 takes as many
    as make `LOGITS_AT_ONCE`. Softmax and loss are float32 at least; the products follow autocast. Leading dimensions
    are flattened, so (B, T, D) and (B, T) work too.

    torch 2.14's `F.linear_cross_entropy` with options does the same. It is not used: older releases lack it, it
    gives the mean or the values of each token, not both, and autocast does not reach it.

    Raises:
        ValueError: the shapes do not fit.
    """
    hidden, targets = hidden.flatten(0, -2), targets.flatten()
    if len(hidden) != len(targets) or not len(hidden) or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)} and targets {tuple(targets.shape)} "
            "must be (N, D), (V, D) and (N,), with N > 0"
        )
    chunk = chunk or max(1, LOGITS_AT_ONCE // len(weight))
    return TokenLoss(*_ChunkedCrossEntropy.apply(hidden, weight, targets, chunk, torch.is_grad_enabled()))
