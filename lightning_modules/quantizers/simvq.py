"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): the codes are C W, with C random and frozen and W the one trained layer.

The same as VQGAN-LC's codebook with random numbers in place of features, and, by default, without its
rescaling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_modules.options import neutral
from lightning_modules.quantizers.base import QuantizerConfig, QuantizerOutput
from lightning_modules.quantizers.projected import ProjectedCodebook


@dataclass
class SimVQConfig(QuantizerConfig):
    """The base's weights, 0.25 on the commitment term and 1.0 on the codebook term, are the official code's.

    `match_scale`: the first training batch scales W as it scales VQGAN-LC's projector (`LargeCodebook`), so that the
    two compare; not the official code's.
    """

    name: str = "simvq"
    match_scale: bool = neutral(False)


class SimVQ(ProjectedCodebook):
    """C is (K, d) from N(0, 1/d), of that variance, and W is (d, d), with a bias, as in the official code.

    C is drawn from the global generator, which Lightning seeds alike on all ranks; DDP copies rank 0's as well.
    """

    config: SimVQConfig

    def __init__(self, config: SimVQConfig, codebook_size: int, code_dim: int) -> None:
        config.check(codebook_size, code_dim)  # before the table is drawn
        super().__init__(config, code_dim, torch.randn(codebook_size, code_dim) * code_dim**-0.5)
        self.is_matched = not config.match_scale
        if config.match_scale:
            self.flags = ("is_matched",)

    def forward(self, z: Tensor) -> QuantizerOutput:
        if self.training and not self.is_matched:
            self.match_scale(z.detach().float().flatten(0, -2))
        return super().forward(z)
