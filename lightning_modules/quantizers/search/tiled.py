"""Exact nearest-code search that never holds the tokens x codes matrix.

The dense formula (`dense`) writes N x K scores, and public VQ code several such matrices: 9.8 GB for 8,192 tokens
and the 100,000 codes of VQGAN-LC. Here the search goes tile by tile, in two passes:

1. Each tile of scores is one matrix product into a reused buffer that stays in the cache, and one `amin` over
   it. This finds each token's best *tile* of codes.
2. Tokens are grouped by best tile, and the best *code* is looked for inside that tile alone.

Pass 2 is 1/196 of the scores at K = 100,000, so the slow part of an argmin, carrying the index along, is
nearly free. The score of a pair is ||e||²/2 - z·e = (-z, 1)·(e, ||e||²/2): ||z||² is the same for all codes, and
one more dimension makes the norm part of the product instead of another sweep over the tile.

Where there are many codes of few dimensions, most pairs need not be compared at all: see `cells`.

Shapes: N tokens, K codes, d dims; G groups of T tokens; W codes in a tile.
"""

import torch
from torch import Tensor

# One tile of scores for one thread is 512 * 512 * 4 bytes = 1 MiB: it fits the L2 cache of a core.
CPU_TOKENS, CPU_CODES = 512, 512
# A GPU wants fewer and larger launches: 2048 * 4096 * 4 bytes = 32 MiB.
GPU_TOKENS, GPU_CODES = 2048, 4096


def search_tiled(z: Tensor, codebook: Tensor) -> Tensor:
    """(N, d) tokens, (K, d) codes, float32, on one device -> (N,) int64, the nearest code of each token."""
    (N, d), K = z.shape, len(codebook)
    on_cpu = z.device.type == "cpu"
    max_tokens, W = (CPU_TOKENS, CPU_CODES) if on_cpu else (GPU_TOKENS, GPU_CODES)
    B = torch.get_num_threads() if on_cpu else 1  # groups in one product: bmm gives each thread its own
    G = B * max(1, -(-N // (B * max_tokens)))  # a multiple of B
    T = max(1, -(-N // G))  # tokens spread evenly, so that less than one row a group is padding

    half_norms = torch.linalg.vector_norm(codebook, dim=1, keepdim=True).square_().div_(2)  # (K, 1)

    def tile(start: int) -> Tensor:
        codes = slice(start, start + W)  # the last tile is narrower
        return torch.cat([codebook[codes], half_norms[codes]], dim=1).T  # (d+1, W)

    tokens = z.new_ones(G * T, d + 1)  # the rows from N on are padding
    torch.neg(z, out=tokens[:N, :d])
    groups = tokens.view(G, T, d + 1)
    buffer = z.new_empty(B * T * min(W, K))

    # Pass 1: the tile that holds each token's nearest code.
    best = z.new_full((G, T), torch.inf)
    best_tile = torch.zeros(G, T, dtype=torch.int64, device=z.device)
    minimum = torch.empty_like(best)
    work = list(zip(groups.split(B), minimum.split(B), strict=True))
    for start in range(0, K if K > W else 0, W):
        codes = tile(start).expand(B, -1, -1)  # (B, d+1, W)
        scores = buffer[: B * T * codes.shape[2]].view(B, T, -1)
        for rows, row_minimum in work:
            torch.bmm(rows, codes, out=scores)  # (B, T, W)
            torch.amin(scores, dim=2, out=row_minimum)  # (B, T)
        best_tile.masked_fill_(minimum < best, start)
        torch.minimum(best, minimum, out=best)

    # Pass 2: the nearest code inside that tile.
    indices = torch.empty(N, dtype=torch.int64, device=z.device)
    starts, order = best_tile.flatten()[:N].sort()
    starts, counts = starts.unique_consecutive(return_counts=True)
    for start, members in zip(starts.tolist(), order.split(counts.tolist()), strict=True):
        codes = tile(start)
        for rows in members.split(B * max_tokens):
            indices[rows] = (tokens[rows] @ codes).min(dim=1).indices + start
    return indices
