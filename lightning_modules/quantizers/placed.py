"""Codebooks whose first codes may be placed on latents, at once or after a warm-up without quantization.

Shapes: B images, K codes of d dimensions, n latents of this rank.
"""

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from lightning_modules.checks import require
from lightning_modules.distributed import all_reduce_sum, rank, world_size
from lightning_modules.options import neutral
from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput

SPREAD = 0.01  # of the latents' deviation, which codes that are placed on them get as noise


@dataclass
class PlacedConfig(QuantizerConfig):
    """`init`: "random" is the papers' start, which each class states, or "latents": codes are random latents of the
    training step `place_at`, before which latents pass as they are and train encoder and decoder alone.
    """

    init: str = neutral("random")
    place_at: int = neutral(0)  # optimizer steps

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        require(self.init in ("random", "latents"), f"quantizer.init='{self.init}' is none of random, latents")
        require(
            self.place_at == 0 or self.init == "latents",
            f"quantizer.place_at={self.place_at} needs quantizer.init=latents: random codes are there from the start",
        )


class PlacedQuantizer(Quantizer):
    """Subclasses give `place`. Latents are (B, ..., d), B images or whatever a batch is split into over the ranks."""

    config: PlacedConfig

    def __init__(self, config: PlacedConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        self.is_placed = config.init == "random"  # the codes have their first values
        if not self.is_placed:
            self.flags = ("is_placed", "num_waited")

    @abstractmethod
    def place(self, codes: Tensor, share: float, first: int = 0) -> None:
        """Takes first values of the codes from number `first` on, (K - first, d).

        `share` of a step's latents falls to each of K codes that are used alike.
        """

    @torch.no_grad()
    def grow(self, first: int, z: Tensor, images_a_step: int) -> None:
        """Places the codes from number `first` on random latents of z (B, ..., d), and keeps those before.

        On all ranks the same, so z is not a rank's share; `images_a_step` are those of an optimizer step of all ranks.
        """
        rows = self.prepare(z).flatten(0, -2)  # (N, d)
        picks = torch.randint(len(rows), (self.codebook_size - first,))
        codes = rows[picks] + SPREAD * rows.std(0, correction=0) * torch.randn(len(picks), rows.shape[1])
        self.place(codes, len(rows) // len(z) * images_a_step / self.codebook_size, first)

    def forward(self, z: Tensor) -> QuantizerOutput:
        if self.training and not self.is_placed:
            if self.waits(self.config.place_at):
                return self.pass_latents(z)
            with torch.no_grad():
                self.place(draw_latents(self.prepare(z), self.codebook_size), self.fair_share(z))
            self.is_placed = True
        return super().forward(z)

    def fair_share(self, z: Tensor) -> float:
        """Latents of a step for each code, of which z (B, ..., d) are this rank's in one forward."""
        return z[..., 0].numel() * world_size() * self.num_forwards / self.codebook_size


def draw_latents(z: Tensor, size: int) -> Tensor:
    """`size` random latents of the global batch, of which z (B, ..., d) is this rank's share: (size, d).

    Spread by `SPREAD` of their deviation, so that no two are equal. The same on all ranks, and the ones that a
    single process draws of the whole batch.
    """
    rows = z.detach().flatten(0, -2)  # (n, d)
    picks = torch.randint(len(rows) * world_size(), (size,), device=z.device)
    if world_size() == 1:
        chosen, deviation = rows[picks], rows.std(0, correction=0)
    else:
        torch.distributed.broadcast(picks, src=0)  # should the ranks' random numbers have drifted apart
        chosen, deviation = chosen_rows(rows, picks, len(rows) // len(z)), global_deviation(rows)
    chosen = chosen + SPREAD * deviation * torch.randn_like(chosen)
    if world_size() > 1:
        torch.distributed.broadcast(chosen, src=0)
    return chosen


def chosen_rows(rows: Tensor, picks: Tensor, per_image: int) -> Tensor:
    """Rows (size, d) of the global batch by their numbers there; `rows` (n, d) are those of this rank's images."""
    image, place = picks // per_image, picks % per_image
    mine = (image % world_size() == rank()).unsqueeze(-1)
    chosen = rows[image // world_size() * per_image + place]
    return all_reduce_sum(torch.where(mine, chosen, 0))


def global_deviation(rows: Tensor) -> Tensor:
    """The standard deviation (d,) of all ranks' rows (n, d)."""
    count = len(rows) * world_size()
    mean = all_reduce_sum(rows.sum(0)) / count
    return (all_reduce_sum((rows - mean).square().sum(0)) / count).sqrt()
