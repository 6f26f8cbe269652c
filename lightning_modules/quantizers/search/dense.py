"""The formula of nearest-code search, and the path that can be exported: plain tensor operations without a loop.

Shapes: N tokens, K codes, d dims.
"""

import torch
from torch import Tensor


@torch.no_grad()
def search_dense(z: Tensor, codebook: Tensor) -> Tensor:
    """(N, d) tokens, (K, d) codes, float32 -> (N,) int64, the nearest code of each token.

    ||z - e||² = ||z||² - 2 (z·e - ||e||²/2), and ||z||² is the same for all codes. Holds all N x K scores.
    """
    half_norms = codebook.square().sum(1) / 2  # (K,)
    scores = half_norms - z @ codebook.T  # (N, K)
    return scores.argmin(1)
