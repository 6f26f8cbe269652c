"""Nearest-code search on a GPU as one Triton kernel: scores live in registers and never reach memory.

A program takes a block of tokens, walks over the codes block by block, and keeps each token's smallest score and its
code. The score of a pair is that of the tiled search, ||e||²/2 - z·e in float32 without TF32; of equal ones the lowest
code wins. Where tokens are few, the codes are split over several programs, whose winners are compared at the end.

A token with a value that is not a number gets code 0, as in the tiled search; the training step refuses its loss.

Shapes: N tokens, K codes, d dims; S splits of the codes.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

FEW_DIMS = 16  # up to these, products are summed one dimension at a time: `tl.dot` would pad them
PROGRAMS = 1024  # enough to fill a large GPU; fewer blocks of tokens than this: the codes are split
TOKENS, CODES, DIMS = 64, 64, 32  # of a block


@triton.jit
def _nearest_kernel(
    tokens, codes, half_norms, scores, indices, N, K, d, codes_a_split,
    IS_FEW_DIMS: tl.constexpr, NUM_DIMS: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)  # (TOKENS,)
    is_row = rows < N
    split = tl.program_id(1)
    first = split * codes_a_split
    best = tl.full((TOKENS,), float("inf"), tl.float32)
    best_index = tl.zeros((TOKENS,), tl.int32)
    for start in range(first, tl.minimum(first + codes_a_split, K), CODES):
        columns = start + tl.arange(0, CODES)  # (CODES,)
        is_column = columns < K
        dot = tl.zeros((TOKENS, CODES), tl.float32)
        if IS_FEW_DIMS:
            for i in tl.static_range(NUM_DIMS):
                z = tl.load(tokens + rows * d + i, mask=is_row, other=0.0)
                e = tl.load(codes + columns * d + i, mask=is_column, other=0.0)
                dot += z[:, None] * e[None, :]
        else:
            for part in range(0, d, DIMS):
                dims = part + tl.arange(0, DIMS)
                z = tl.load(
                    tokens + rows[:, None] * d + dims[None, :], mask=is_row[:, None] & (dims < d)[None, :], other=0.0
                )
                e = tl.load(
                    codes + columns[None, :] * d + dims[:, None],
                    mask=is_column[None, :] & (dims < d)[:, None],
                    other=0.0,
                )
                dot = tl.dot(z, e, dot, input_precision="ieee")  # (TOKENS, CODES)
        norm = tl.load(half_norms + columns, mask=is_column, other=float("inf"))
        all_scores = norm[None, :] - dot  # (TOKENS, CODES)
        all_scores = tl.where(all_scores == all_scores, all_scores, float("inf"))  # not a number: never the nearest
        score, at = tl.min(all_scores, 1, return_indices=True, return_indices_tie_break_left=True)
        best_index = tl.where(score < best, start + at, best_index)
        best = tl.minimum(best, score)
    tl.store(scores + split * N + rows, best, mask=is_row)
    tl.store(indices + split * N + rows, best_index, mask=is_row)


def search_fused(z: Tensor, codebook: Tensor) -> Tensor:
    """(N, d) tokens, (K, d) codes, float32, on one GPU, -> (N,) int64, the nearest of each token.

    Memory beyond the arguments: 4 bytes a code, and 8 bytes a token and split; no host synchronisation.
    """
    (N, d), K = z.shape, len(codebook)
    z, codebook = z.contiguous(), codebook.contiguous()
    half_norms = torch.linalg.vector_norm(codebook, dim=1).square_().div_(2)  # (K,)
    blocks = triton.cdiv(N, TOKENS)
    splits = max(1, min(PROGRAMS // max(1, blocks), triton.cdiv(K, 8 * CODES)))
    codes_a_split = triton.cdiv(triton.cdiv(K, splits), CODES) * CODES
    splits = triton.cdiv(K, codes_a_split)
    scores = z.new_empty(splits, N)
    indices = torch.empty(splits, N, dtype=torch.int32, device=z.device)
    if N:
        _nearest_kernel[(blocks, splits)](
            z, codebook, half_norms, scores, indices, N, K, d, codes_a_split,
            IS_FEW_DIMS=d <= FEW_DIMS, NUM_DIMS=d if d <= FEW_DIMS else 0, TOKENS=TOKENS, CODES=CODES, DIMS=DIMS,
        )  # fmt: skip
    winner = scores.argmin(0, keepdim=True)  # of equal scores the first split: the lowest code
    return indices.gather(0, winner)[0].long()
