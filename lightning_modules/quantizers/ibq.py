"""IBQ, index backpropagation quantization (Shi et al. 2024, arXiv 2412.02692): the gradient reaches every code.

A latent z takes the code e_n of largest dot product, not the nearest one. The choice is a one-hot row that passes the
gradient of the softmax over all K codes (section 3.2, index backpropagation):

    index = onehot(argmax z.e_n) + p - sg(p),   p = softmax(z.e_n),   z_q = index C

so z_q is the chosen code in value, and there is no identity path from z_q to z. Shapes: N latents, K codes of d dims.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_modules.checks import require
from lightning_modules.distributed import mean_over_ranks
from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput

PAIRS = 2**24  # latents x codes in memory at a time: 64 MiB a matrix
EPS = 1e-5  # inside the logarithm of the codes' entropy, as in the public code; at 2^18 codes it takes up to 1.3 nats


@dataclass
class IBQConfig(QuantizerConfig):
    """The public code's weights. Departs from the paper, as the code does: its equation 10 puts 0.25 on the other term.

    `joint_weight` multiplies ||z_q - z||^2, through which the gradient reaches latents and all codes. `entropy_weight`:
    each latent should be sure of its code, all together should use all; `temperature` is that of these two entropies.
    """

    name: str = "ibq"
    commitment_weight: float = 1.0
    codebook_weight: float = 0.25
    joint_weight: float = 1.0
    entropy_weight: float = 0.05
    temperature: float = 0.01

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        require(self.temperature > 0, f"quantizer.temperature={self.temperature} must be above 0")


class IBQ(Quantizer):
    """Codes start uniform in (-1/K, 1/K), as in the public code.

    Holds `PAIRS` dot products at a time; where there are more, the backward pass computes them again.
    """

    config: IBQConfig
    searches: ClassVar[float] = 6.0  # with all codes and with their soft choice, forward and back

    def __init__(self, config: IBQConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        self.codes = nn.Parameter(torch.empty(codebook_size, code_dim))  # (K, d)
        nn.init.uniform_(self.codes, -1 / codebook_size, 1 / codebook_size)

    def codebook(self) -> Tensor:
        return self.codes

    def to_rank(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """One more dimension gives all codes the same norm: then the nearest one is that of the largest dot product."""
        norms = self.codes.square().sum(1, keepdim=True)  # (K, 1)
        codes = torch.cat([self.codes, (norms.max() - norms).sqrt()], 1)  # (K, d + 1)
        return F.pad(self.prepare(z).flatten(0, -2), (0, 1)), codes

    def forward(self, z: Tensor) -> QuantizerOutput:
        z = self.prepare(z)
        with torch.autocast(z.device.type, enabled=False):
            indices, mixed, of_latents, of_codes = self.compare_all(z.flatten(0, -2))
        codes = F.embedding(indices, self.codes).view(z.shape)  # (..., d)
        mixed = mixed.view(z.shape)
        quantized = codes + (mixed - mixed.detach())  # the codes bit for bit
        joint = self.config.joint_weight * F.mse_loss(quantized, z)
        loss = self.vq_loss(z, codes) + joint + self.config.entropy_weight * (of_latents - of_codes)
        return QuantizerOutput(quantized, indices.view(z.shape[:-1]), loss)

    def compare_all(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Latents (N, d) -> indices (N,), the softmax's means of the codes (N, d), and the two entropies in nats: that
        of a latent's choice, on average, and that of the choices of all, in training those of all ranks.
        """
        compare: Any = self.compare
        blocks = (z,) if torch.compiler.is_exporting() else z.split(max(1, PAIRS // self.codebook_size))
        if len(blocks) > 1 and torch.is_grad_enabled():
            compare = partial(checkpoint, self.compare, use_reentrant=False, preserve_rng_state=False)
        indices, mixed, entropies, chances = zip(*map(compare, blocks), strict=True)
        chance = torch.stack(chances).sum(0) / z.shape[0]  # (K,); len() would fix the size of an exported batch
        if self.training:
            chance = mean_over_ranks(chance)
        of_codes = -(chance * (chance + EPS).log()).sum()
        return torch.cat(indices), torch.cat(mixed), torch.stack(entropies).sum() / z.shape[0], of_codes

    def compare(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a block of latents (n, d), the entropies and chances as sums over them."""
        logits = z @ self.codes.T  # (n, K)
        mixed = logits.softmax(1) @ self.codes.detach()  # (n, d)
        surprise = (logits / self.config.temperature).log_softmax(1)
        chances = surprise.exp()
        return logits.argmax(1), mixed, -(chances * surprise).sum(), chances.sum(0)
