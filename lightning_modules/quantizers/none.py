"""No quantizer: continuous latents of as many dimensions, the ceiling that a table compares codebooks with."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput


@dataclass
class NoQuantizerConfig(QuantizerConfig):
    """Both weights are 0, as there is no loss, and model.codebook_size is 0: usage is not measured."""

    name: str = "none"
    commitment_weight: float = 0.0
    codebook_weight: float = 0.0
    trains_codes: ClassVar[bool] = False

    def check(self, codebook_size: int, code_dim: int) -> None:
        if codebook_size != 0 or code_dim < 1:
            raise ValueError(
                f"quantizer 'none' has no codes: model.codebook_size={codebook_size} must be 0, and model.code_dim="
                f"{code_dim} at least 1"
            )
        if self.commitment_weight or self.codebook_weight:
            raise ValueError("quantizer 'none' has no loss: commitment_weight and codebook_weight must be 0")


class NoQuantizer(Quantizer):
    """Passes latents (..., d) as float32, with index 0 and loss 0. Its images have no tokens."""

    config: NoQuantizerConfig
    searches: ClassVar[float] = 0.0

    def codebook(self) -> Tensor:
        return torch.zeros(0, self.code_dim)

    def forward(self, z: Tensor) -> QuantizerOutput:
        z = self.prepare(z)
        return QuantizerOutput(z, torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device), z.new_zeros(()))
