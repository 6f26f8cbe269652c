"""Factorized codes (paper A, section 3.2): the look-up happens in a low dimension, on l2-normalised vectors or not.

The two linear maps, backbone width -> d and d -> backbone width, are the tokenizer's `pre_quant` and `post_quant`;
what is left here is the normalisation. Paper A has it on (Table 4: usage 96 % with, 2 % without); paper B's VQGAN-FC
baseline has it off.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.quantizers.placed import PlacedConfig
from lightning_modules.quantizers.vq import VectorQuantizer


@dataclass
class FactorizedConfig(PlacedConfig):
    """`init` "random" is a normal distribution (paper A, section 3.2) with `l2_norm`. Without it the norm of the codes
    matters, and they are uniform in (-1/K, 1/K), as in paper B's baseline.
    """

    name: str = "factorized"
    l2_norm: bool = True

    @property
    def label(self) -> str:
        return "l2" if self.l2_norm else ""


class FactorizedQuantizer(VectorQuantizer):
    """Codes and latents on the unit sphere when `l2_norm`: the nearest code is then the one of largest cosine."""

    config: FactorizedConfig

    def draw_codes(self) -> None:
        if self.config.l2_norm:
            nn.init.normal_(self.codes)
        else:
            super().draw_codes()

    def codebook(self) -> Tensor:
        return F.normalize(self.codes, dim=-1) if self.config.l2_norm else self.codes

    def prepare(self, z: Tensor) -> Tensor:
        return F.normalize(z.float(), dim=-1) if self.config.l2_norm else z.float()
