"""A codebook that is a linear image of a frozen table: projector(table).

Only the projector, a linear layer C -> d, is trained; it moves all K codes together, so that none stays unused for lack
of updates. The codes that a latent is compared with are computed anew each step; gradients reach the projector through
the rows that were chosen, as in the official codes of VQGAN-LC and SimVQ.

Shapes: K codes of d dimensions; C features of a row of the table.
"""

import torch
from torch import Tensor, nn

from lightning_modules.quantizers.base import Quantizer, QuantizerConfig


class ProjectedCodebook(Quantizer):
    """A frozen table (K, C), which is part of the checkpoint, and Linear(C, d); K and C are those of `table`.

    Raises:
        ValueError: K or d is not one that `config` allows.
    """

    table: Tensor  # (K, C)

    def __init__(self, config: QuantizerConfig, code_dim: int, table: Tensor) -> None:
        codebook_size, feature_dim = table.shape
        super().__init__(config, codebook_size, code_dim)
        self.register_buffer("table", table)
        self.projector = nn.Linear(feature_dim, code_dim)

    def codebook(self) -> Tensor:
        with torch.autocast(self.table.device.type, enabled=False):
            return self.projector(self.table)  # (K, d)
