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

from lightning_modules.distributed import all_reduce_sum, rank, world_size
from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput


@dataclass
class EMAConfig(QuantizerConfig):
    """`decay` 0.99 and `eps` 1e-5 as in paper B's baseline.

    `init`: "latents" places the codes on random latents of the first training batch; "normal" draws them from
    N(0, 1), and then the few that lie nearest to the latents win for good. Departs from B's code, which draws them
    uniform in (-1/K, 1/K) and starts the counts at 0, not 1. `dead_code_threshold`: a code whose averaged count falls
    below it is re-seeded with a random latent of the batch (Dhariwal et al. 2020); 0 = never.
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
        if not 0 <= self.decay < 1:
            raise ValueError(f"quantizer.decay={self.decay} must be in [0, 1)")
        if self.eps <= 0:
            raise ValueError(f"quantizer.eps={self.eps} must be above 0: a code that no latent chose has count 0")


class EMAQuantizer(Quantizer):
    """Holds buffers and no parameters.

    They are updated once an optimizer step, which is every training forward unless `start_step` says otherwise;
    evaluation changes nothing. Latents are (B, ..., d), B images or whatever a batch is split into over the ranks.
    """

    flags = ("is_placed",)
    config: EMAConfig
    codes: Tensor  # (K, d) = sums / smoothed counts
    counts: Tensor  # (K,) averaged number of latents a step
    sums: Tensor  # (K, d) averaged sum of latents a step
    added: tuple[Tensor, Tensor]  # counts (K,) and sums (K, d) of the micro-batches of an unfinished step

    def __init__(self, config: EMAConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        codes = torch.randn(codebook_size, code_dim)
        self.register_buffer("codes", codes)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codes.clone())
        self.is_placed = config.init == "normal"  # the codes have their first values
        self.start_step(1)

    def start_step(self, num_forwards: int) -> None:
        """As `Quantizer.start_step`; drops what an unfinished step has added up."""
        self.num_forwards, self.num_added = num_forwards, 0

    def codebook(self) -> Tensor:
        return self.codes

    def forward(self, z: Tensor) -> QuantizerOutput:
        if self.training and not self.is_placed:
            self.place(z.detach().float())
        output = super().forward(z)
        if self.training:
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
        """Gives every dead code a random latent of the batch, with the average count 1 and the sum that fits it."""
        dead = self.counts < self.config.dead_code_threshold  # (K,)
        if num_dead := int(dead.sum()):  # `counts` agree over ranks, so `dead` does too
            self.counts[dead] = 1.0
            self.sums[dead] = self.draw(z, num_dead)

    @torch.no_grad()
    def place(self, z: Tensor) -> None:
        """First values: random latents, spread by a hundredth of their deviation, so that no two codes are equal."""
        codes = self.draw(z, self.codebook_size)
        self.codes.copy_(codes)
        self.sums.copy_(codes)
        self.is_placed = True

    @staticmethod
    def draw(z: Tensor, size: int) -> Tensor:
        """`size` random latents of the global batch, of which z (B, ..., d) is this rank's share: (size, d).

        The same on all ranks, and the ones that a single process draws of the whole batch.
        """
        rows = z.flatten(0, -2)  # (n, d)
        picks = torch.randint(len(rows) * world_size(), (size,), device=z.device)
        if world_size() == 1:
            chosen, deviation = rows[picks], rows.std(0, correction=0)
        else:
            torch.distributed.broadcast(picks, src=0)  # should the ranks' random numbers have drifted apart
            chosen, deviation = chosen_rows(rows, picks, len(rows) // len(z)), global_deviation(rows)
        chosen = chosen + 0.01 * deviation * torch.randn_like(chosen)
        if world_size() > 1:
            torch.distributed.broadcast(chosen, src=0)
        return chosen


def chosen_rows(rows: Tensor, picks: Tensor, per_image: int) -> Tensor:
    """Rows (size, d) of the global batch by their numbers there; `rows` (n, d) are those of this rank's images."""
    image, place = picks // per_image, picks % per_image
    mine = image % world_size() == rank()
    chosen = rows.new_zeros(len(picks), rows.shape[1])
    chosen[mine] = rows[image[mine] // world_size() * per_image + place[mine]]
    return all_reduce_sum(chosen)


def global_deviation(rows: Tensor) -> Tensor:
    """The standard deviation (d,) of all ranks' rows (n, d)."""
    count = len(rows) * world_size()
    mean = all_reduce_sum(rows.sum(0)) / count
    return (all_reduce_sum((rows - mean).square().sum(0)) / count).sqrt()
