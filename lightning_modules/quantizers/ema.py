"""Codebook trained by exponential moving averages of the latents assigned to each code.

van den Oord et al. 2017, appendix A.1: N_i <- g N_i + (1 - g) n_i, m_i <- g m_i + (1 - g) sum of z, e_i = m_i / N_i,
with Laplace smoothing of N. Counts and sums are added up over all ranks before they enter the averages, so every
rank holds the same codebook (public image code leaves this out, and its ranks drift apart).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput, all_reduce_sum


@dataclass
class EMAConfig(QuantizerConfig):
    """`decay` 0.99 and `eps` 1e-5 as in paper B's baseline.

    `init`: "latents" places the codes on random latents of the first training batch; "normal" draws them from
    N(0, 1), and then the few that lie nearest to the latents win for good. `dead_code_threshold`: a code whose
    averaged count falls below it is re-seeded with a random latent of the batch (Dhariwal et al. 2020); 0 = never.
    """

    name: str = "ema"
    commitment_weight: float = 1.0  # paper B's baseline: the loss is the plain commitment term
    codebook_weight: float = 0.0  # no gradient reaches the codes
    decay: float = 0.99
    eps: float = 1e-5
    init: str = "latents"
    dead_code_threshold: float = 0.0
    trains_codes: ClassVar[bool] = False

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        if self.init not in ("latents", "normal"):
            raise ValueError(f"quantizer.init='{self.init}' is none of latents, normal")


class EMAQuantizer(Quantizer):
    """Buffers only, no parameters. Updated once per training forward; evaluation changes nothing."""

    config: EMAConfig
    codes: Tensor  # (K, d) = sums / smoothed counts
    counts: Tensor  # (K,) averaged number of latents a step
    sums: Tensor  # (K, d) averaged sum of latents a step
    is_placed: Tensor  # () bool: the codes have their first values

    def __init__(self, config: EMAConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        codes = torch.randn(codebook_size, code_dim)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.register_buffer("is_placed", torch.tensor(config.init == "normal"))

    def codebook(self) -> Tensor:
        return self.codes

    def forward(self, z: Tensor) -> QuantizerOutput:
        if self.training and not self.is_placed:
            self.place(z.detach().float().flatten(0, -2))
        output = super().forward(z)
        if self.training:
            self.update(z.detach().float().flatten(0, -2), output.indices.flatten())
        return output

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """One step of the averages from latents z (N, d) and their codes (N,)."""
        counts = all_reduce_sum(torch.bincount(indices, minlength=self.codebook_size).to(z.dtype))  # (K,)
        sums = all_reduce_sum(torch.zeros_like(self.sums).index_add_(0, indices, z))  # (K, d)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        if self.config.dead_code_threshold > 0:
            self.reseed(z)
        total = self.counts.sum()
        smoothed = (self.counts + self.config.eps) / (total + self.codebook_size * self.config.eps) * total
        self.codes.copy_(self.sums / smoothed.unsqueeze(-1))

    def reseed(self, z: Tensor) -> None:
        """Gives every dead code a random latent of the batch, with the average count 1 and the sum that fits it."""
        dead = self.counts < self.config.dead_code_threshold  # (K,)
        self.counts[dead] = 1.0  # `counts` agree over ranks, so `dead` does too
        self.sums[dead] = self.draw(z, int(dead.sum()))

    @torch.no_grad()
    def place(self, z: Tensor) -> None:
        """First values: random latents, spread by a hundredth of their deviation, so that no two codes are equal."""
        codes = self.draw(z, self.codebook_size)
        self.codes.copy_(codes)
        self.sums.copy_(codes)
        self.is_placed.fill_(True)

    @staticmethod
    def draw(z: Tensor, size: int) -> Tensor:
        """`size` random rows of z (N, d), the same on all ranks: (size, d)."""
        picks = z[torch.randint(len(z), (size,), device=z.device)]
        picks = picks + 0.01 * z.std(0, correction=0) * torch.randn_like(picks)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(picks, src=0)
        return picks
