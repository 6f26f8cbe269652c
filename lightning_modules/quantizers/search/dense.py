"""The formula of nearest-code search, and the path that can be exported: plain tensor operations without a loop.

Shapes: N tokens, K codes, d dims, R ranks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

RANKED_PAIRS = 2**24  # distances in memory at a time: 64 MiB


@torch.no_grad()
def search_dense(z: Tensor, codebook: Tensor) -> Tensor:
    """(N, d) tokens, (K, d) codes, float32 -> (N,) int64, the nearest code of each token.

    ||z - e||² = ||z||² - 2 (z·e - ||e||²/2), and ||z||² is the same for all codes. Holds all N x K scores.
    """
    half_norms = codebook.square().sum(1) / 2  # (K,)
    scores = half_norms - z @ codebook.T  # (N, K)
    return scores.argmin(1)


def search_ranks(z: Tensor, codebook: Tensor, ranks: Sequence[int]) -> Tensor:
    """(N, d) tokens, (K, d) codes -> (N, R) int64, each token's M-th nearest code for the R values M of `ranks`.

    M = 1 is the nearest. Holds `RANKED_PAIRS` distances at a time.

    Raises:
        ValueError: an M outside [1, K].
    """
    if min(ranks) < 1 or max(ranks) > len(codebook):
        raise ValueError(f"ranks {list(ranks)} must lie between 1 and the {len(codebook)} codes")
    blocks = z.split(max(1, RANKED_PAIRS // len(codebook)))
    nearest = [torch.cdist(block, codebook).topk(max(ranks), largest=False).indices for block in blocks]
    return torch.cat(nearest)[:, torch.tensor(ranks, device=z.device) - 1]
