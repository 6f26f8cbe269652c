"""A codebook that is a linear image of a frozen table: projector(table).

Only the projector, a linear layer C -> d, is trained; it moves all K codes together, so that none stays unused for lack
of updates. The codes that a latent is compared with are computed anew each step; gradients reach the projector through
the rows that were chosen, as in the official codes of VQGAN-LC and SimVQ. The other rows' gradient is zero: where few
are chosen the backward pass leaves them out.

Shapes: K codes of d dimensions; C features of a row of the table.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.distributed import all_reduce_sum
from lightning_modules.quantizers.base import Quantizer, QuantizerConfig


class ProjectedCodebook(Quantizer):
    """A frozen table (K, C), which is part of the checkpoint, and Linear(C, d); K and C are those of `table`.

    Raises:
        ValueError: K or d is not one that `config` allows.
    """

    table: Tensor  # (K, C)
    is_matched: bool  # the projector was scaled to the latents

    def __init__(self, config: QuantizerConfig, code_dim: int, table: Tensor) -> None:
        codebook_size, feature_dim = table.shape
        super().__init__(config, codebook_size, code_dim)
        self.register_buffer("table", table)
        self.projector = nn.Linear(feature_dim, code_dim)

    def codebook(self) -> Tensor:
        if isinstance(self.projector, nn.Identity):
            return self.table  # (K, d)
        with torch.autocast(self.table.device.type, enabled=False):
            return self.projector(self.table)  # (K, d)

    @torch.no_grad()
    def match_scale(self, z: Tensor) -> None:
        """Gives the projected table the mean and deviation of latents z (N, d), in each dimension, over all ranks."""
        moments = torch.stack([torch.ones_like(z), z, z.square()]).sum(1)  # (3, d)
        count, total, total_square = all_reduce_sum(moments)
        mean = total / count
        std = (total_square / count - mean.square()).clamp_min(1e-12).sqrt()
        with torch.autocast(z.device.type, enabled=False):
            projected = F.linear(self.table, self.projector.weight)  # (K, d)
        scale = std / projected.std(0).clamp_min(1e-12)
        self.projector.weight.mul_(scale.unsqueeze(-1))
        self.projector.bias.copy_(mean - projected.mean(0) * scale)
        self.is_matched = True

    @torch.no_grad()
    def fold(self) -> None:
        """Keeps only the projected codes (K, d) instead of the features (K, C): for use, not for training."""
        codes = self.codebook().detach()
        del self.table
        self.register_buffer("table", codes)
        self.projector = nn.Identity()  # type: ignore[assignment]

    def chosen(self, indices: Tensor, codebook: Tensor) -> Tensor:
        is_frozen = isinstance(self.projector, nn.Linear) and not self.table.requires_grad
        if not is_frozen or torch.compiler.is_exporting() or indices.numel() >= len(codebook):
            return super().chosen(indices, codebook)
        return _Chosen.apply(indices, codebook.detach(), self.table, self.projector.weight, self.projector.bias)


class _Chosen(torch.autograd.Function):
    """Rows of a projected codebook; the backward pass projects those rows alone."""

    @staticmethod
    def forward(ctx: Any, indices: Tensor, codebook: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(indices, table)
        return F.embedding(indices, codebook)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        indices, table = ctx.saved_tensors
        gradient = grads[0].flatten(0, -2).to(table.dtype)  # (N, d)
        return None, None, None, gradient.T @ F.embedding(indices.flatten(), table), gradient.sum(0)
