"""Codebook trained by exponential moving averages of the latents assigned to each code.

van den Oord et al. 2017, appendix A.1: N_i <- g N_i + (1 - g) n_i, m_i <- g m_i + (1 - g) sum of z, e_i = m_i / N_i,
with Laplace smoothing of N. Counts and sums are added up over all ranks before they enter the averages, so every
rank holds the same codebook (public image code leaves this out, and its ranks drift apart), and the one that a single
process would hold. The micro-batches of an optimizer step are added up as well, and update the codes once.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.distributed import all_reduce_sum
from lightning_modules.quantizers.base import QuantizerOutput
from lightning_modules.quantizers.placed import PlacedConfig, PlacedQuantizer, draw_latents


@dataclass
class EMAConfig(PlacedConfig):
    """`decay` 0.99 and `eps` 1e-5 as in paper B's baseline.

    `init` "random" is B's code: uniform in (-1/K, 1/K) with counts of 0. A code that no latent chose then is its first
    value over `eps`: it starts far out, and comes nearer by `decay` a step. Counts of placed codes are the fair share
    N/K of a step's N latents. `dead_code_threshold`: a code whose averaged count falls below this part of the fair
    share is re-seeded with a random latent of the batch and the fair share (after Dhariwal et al. 2020); 0 = never.
    With `init` "random" that is the whole codebook at the first step, whose counts are still small.
    """

    name: str = "ema"
    commitment_weight: float = 1.0  # paper B's baseline: the loss is the plain commitment term
    codebook_weight: float = 0.0  # no gradient reaches the codes
    decay: float = 0.99
    eps: float = 1e-5
    dead_code_threshold: float = 0.0
    trains_codes: ClassVar[bool] = False

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        if not 0 <= self.decay < 1:
            raise ValueError(f"quantizer.decay={self.decay} must be in [0, 1)")
        if self.eps <= 0:
            raise ValueError(f"quantizer.eps={self.eps} must be above 0: a code that no latent chose has count 0")
        if not 0 <= self.dead_code_threshold < 1:
            raise ValueError(
                f"quantizer.dead_code_threshold={self.dead_code_threshold} is a part of the fair share: take one in "
                "[0, 1), such as 0.5"
            )


class EMAQuantizer(PlacedQuantizer):
    """Holds buffers and no parameters.

    They are updated once an optimizer step, which is every training forward unless `start_step` says otherwise;
    evaluation changes nothing.
    """

    config: EMAConfig
    codes: Tensor  # (K, d) = sums / smoothed counts
    counts: Tensor  # (K,) averaged number of latents a step
    sums: Tensor  # (K, d) averaged sum of latents a step
    added: tuple[Tensor, Tensor]  # counts (K,) and sums (K, d) of the micro-batches of an unfinished step

    def __init__(self, config: EMAConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        codes = (2 * torch.rand(codebook_size, code_dim) - 1) / codebook_size
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.zeros(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.start_step(1)

    def start_step(self, num_forwards: int) -> None:
        """As `Quantizer.start_step`; drops what an unfinished step has added up."""
        super().start_step(num_forwards)
        self.num_added = 0

    def codebook(self) -> Tensor:
        return self.codes

    def forward(self, z: Tensor) -> QuantizerOutput:
        output = super().forward(z)
        if self.training and self.is_placed:
            self.update(z.detach().float(), output.indices.flatten())
        return output

    @torch.no_grad()
    def update(self, z: Tensor, indices: Tensor) -> None:
        """One step of the averages from latents z (B, ..., d) and their indices (N,), or one micro-batch of that step.

        Dead codes are replaced by latents of the last micro-batch.
        """
        ones = torch.ones_like(indices, dtype=self.counts.dtype)  # no bincount, for which the host waits for a GPU
        counts = torch.zeros_like(self.counts).index_add_(0, indices, ones)  # (K,)
        sums = torch.zeros_like(self.sums).index_add_(0, indices, z.flatten(0, -2))  # (K, d)
        if self.num_added:
            counts, sums = counts + self.added[0], sums + self.added[1]
        self.added, self.num_added = (counts, sums), self.num_added + 1
        if self.num_added < self.num_forwards:
            return
        self.start_step(self.num_forwards)
        del self.added
        counts, sums = all_reduce_sum(counts), all_reduce_sum(sums)
        self.counts.lerp_(counts, 1 - self.config.decay)
        self.sums.lerp_(sums, 1 - self.config.decay)
        if self.config.dead_code_threshold > 0:
            self.reseed(z)
        total = self.counts.sum()
        smoothed = (self.counts + self.config.eps) / (total + self.codebook_size * self.config.eps) * total
        self.codes.copy_(self.sums / smoothed.unsqueeze(-1))

    def reseed(self, z: Tensor) -> None:
        """Gives every dead code a random latent of z (B, ..., d), with the fair share as count and the sum to match.

        A latent is drawn for each code, dead or not: to count the dead ones, the host would wait for a GPU.
        """
        share = self.fair_share(z)
        dead = self.counts < self.config.dead_code_threshold * share  # (K,), the same on all ranks
        latents = draw_latents(z, self.codebook_size)
        self.counts.masked_fill_(dead, share)
        self.sums.copy_(torch.where(dead.unsqueeze(-1), share * latents, self.sums))

    def place(self, codes: Tensor, share: float, first: int = 0) -> None:
        self.codes[first:].copy_(codes)
        self.counts[first:].fill_(share)
        self.sums[first:].copy_(share * codes)
