"""A codebook that is a linear image of a frozen table: projector(table).

Only the projector, a linear layer C -> d, is trained; it moves all K codes together, so none is left behind. The
codes that a latent is compared with are computed anew each step; gradients reach the projector through the rows that
were chosen, as in the official codes of VQGAN-LC and SimVQ.
"""

import torch
from torch import Tensor, nn

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig


class ProjectedCodebook(Quantizer):
    """Frozen table (K, C), part of the checkpoint, + Linear(C, d)."""

    table: Tensor  # (K, C)

    def __init__(self, config: QuantizerConfig, code_dim: int, table: Tensor) -> None:
        codebook_size, feature_dim = table.shape
        super().__init__(config, codebook_size, code_dim)
        self.register_buffer("table", table)
        self.projector = nn.Linear(feature_dim, code_dim)

    def codebook(self) -> Tensor:
        with torch.autocast(self.table.device.type, enabled=False):
            return self.projector(self.table)  # (K, d)
