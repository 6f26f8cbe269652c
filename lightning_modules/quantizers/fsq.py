"""FSQ, finite scalar quantization (Mentzer et al. 2023, arXiv 2309.15505): each dimension is bounded and rounded.

The codebook is the grid of all combinations, so there is nothing to learn, to search or to collapse, and no loss.
Shapes: L levels of a dimension, K = the product of all L, d their number.
"""

from dataclasses import dataclass, field
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput, straight_through

# Table 1: levels for about 2^8, 2^10, 2^12, 2^14 and 2^16 codes; exactly 240, 1,000, 4,375, 15,360 and 64,000.
RECOMMENDED = ([8, 6, 5], [8, 5, 5, 5], [7, 5, 5, 5, 5], [8, 8, 8, 6, 5], [8, 8, 8, 5, 5, 5])
EPS = 1e-3  # keeps tanh's ends inside the outermost levels (appendix A.1)


@dataclass
class FSQConfig(QuantizerConfig):
    """`levels`: L of each dimension, at least 2 (the paper advises 5 or more).

    Empty = the set of the paper's Table 1 whose product is codebook_size: 240, 1000, 4375, 15360 or 64000.
    """

    name: str = "fsq"
    commitment_weight: float = 0.0  # FSQ has no loss
    codebook_weight: float = 0.0
    levels: list[int] = field(default_factory=list)
    trains_codes: ClassVar[bool] = False

    def levels_for(self, codebook_size: int) -> list[int]:
        """The levels in use. Raises ValueError when none are given and the table has none of this product."""
        if self.levels:
            return self.levels
        for levels in RECOMMENDED:
            if prod(levels) == codebook_size:
                return levels
        sizes = ", ".join(f"{prod(levels)} with code_dim={len(levels)}" for levels in RECOMMENDED)
        raise ValueError(
            f"model.codebook_size={codebook_size} is not the product of a recommended set of FSQ levels: take {sizes}, "
            "or set model.quantizer.levels"
        )

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        if self.commitment_weight:
            raise ValueError(f"quantizer.commitment_weight={self.commitment_weight}: FSQ has no loss; set it to 0")
        levels = self.levels_for(codebook_size)
        if min(levels) < 2:
            raise ValueError(f"quantizer.levels={levels} must be at least 2 each")
        if (prod(levels), len(levels)) != (codebook_size, code_dim):
            raise ValueError(
                f"FSQ levels {levels} need model.codebook_size={prod(levels)} and model.code_dim={len(levels)}, "
                f"not {codebook_size} and {code_dim}"
            )


class FSQ(Quantizer):
    """Bounds, rounds and counts up; has no parameters, and no state beyond the configuration.

    Raises:
        ValueError: the levels are not d numbers of at least 2 whose product is K.
    """

    config: FSQConfig
    searches: ClassVar[float] = 0.0
    levels: Tensor  # (d,) int64
    powers: Tensor  # (d,) int64: weight of each dimension's digit in the index, the first the smallest

    def __init__(self, config: FSQConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        levels = torch.tensor(config.levels_for(codebook_size))
        self.register_buffer("levels", levels, persistent=False)
        self.register_buffer("powers", levels.cumprod(0) // levels, persistent=False)

    def codebook(self) -> Tensor:
        return self.lookup(torch.arange(self.codebook_size, device=self.levels.device))

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of `indices` (...) -> (..., d): -1, ..., 1 in steps of 1 / (L // 2); an even L has no 1."""
        digits = indices.unsqueeze(-1) // self.powers % self.levels  # (..., d) in [0, L)
        half_width = self.levels // 2
        return (digits - half_width) / half_width

    def bound(self, z: Tensor) -> Tensor:
        """Latents (..., d) -> a range that rounds to L integers, -(L // 2) the lowest (appendix A.1)."""
        half_range = (self.levels - 1) * (1 - EPS) / 2
        offset = 0.5 * (self.levels % 2 == 0)  # an even L has no middle level
        return torch.tanh(z + torch.tan(offset / half_range)) * half_range - offset

    def prepare(self, z: Tensor) -> Tensor:
        return self.bound(z.float()) / (self.levels // 2)

    def forward(self, z: Tensor) -> QuantizerOutput:
        bounded = self.bound(z.float())
        half_width = self.levels // 2
        digits = bounded.detach().round().long() + half_width
        digits = digits.clamp(self.levels * 0, self.levels - 1)  # a latent that is NaN gets a code too
        indices = (digits * self.powers).sum(-1)
        quantized = straight_through(bounded / half_width, self.lookup(indices))
        return QuantizerOutput(quantized, indices, quantized.new_zeros(()))
