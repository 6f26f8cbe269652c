"""Plain vector quantization: the codebook is trained by gradient (van den Oord et al. 2017; taming's VQGAN)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.quantizers.placed import PlacedConfig, PlacedQuantizer


@dataclass
class VQConfig(PlacedConfig):
    """`init` "random" is uniform in (-1/K, 1/K), as in the public VQGAN code."""

    name: str = "vq"


class VectorQuantizer(PlacedQuantizer):
    """The nearest code by Euclidean distance."""

    config: PlacedConfig

    def __init__(self, config: PlacedConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        self.codes = nn.Parameter(torch.empty(codebook_size, code_dim))  # (K, d)
        self.draw_codes()

    def draw_codes(self) -> None:
        """The first values of the codes."""
        nn.init.uniform_(self.codes, -1 / self.codebook_size, 1 / self.codebook_size)

    def codebook(self) -> Tensor:
        return self.codes

    def place(self, codes: Tensor, share: float, first: int = 0) -> None:
        self.codes[first:].copy_(codes)
