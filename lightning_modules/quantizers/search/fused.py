"""Nearest-code search on a GPU as one Triton kernel: scores live in registers and never reach memory.

A program takes a block of tokens, walks over the codes block by block, and keeps for each token and each column of the
block the smallest score so far and where its block began; the columns are compared once, at the end. The score of a
pair is that of the tiled search, ||e||²/2 - z·e with float32's precision; of equal ones the lowest code wins. Where
tokens are few, the codes are split over several programs, whose winners are compared at the end.

A token with a value that is not a number gets code 0, as in the tiled search; the training step refuses its loss.

Shapes: N tokens, K codes, d dims; S splits of the codes.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Up to these, products are summed one dimension at a time: `tl.dot` would pad 8 dims to 16. 0: always `tl.dot`.
FEW_DIMS = 16
PROGRAMS = 1024  # enough to fill a large GPU; fewer blocks of tokens than this: the codes are split


class Block(NamedTuple):
    """Of one program. With few dims a thread holds TOKENS / num_warps tokens, all their dims, and one column."""

    tokens: int
    codes: int
    dims: int
    num_warps: int


@triton.jit(do_not_specialize=["N", "K", "codes_a_split"])
def _nearest_kernel(
    tokens, codes, half_norms, scores, indices, N, K, d, codes_a_split,
    IS_FEW_DIMS: tl.constexpr, NUM_DIMS: tl.constexpr, TOKENS: tl.constexpr, CODES: tl.constexpr, DIMS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)  # (TOKENS,)
    is_row = rows < N
    split = tl.program_id(1)
    first = split * codes_a_split
    best = tl.full((TOKENS, CODES), float("inf"), tl.float32)
    best_start = tl.zeros((TOKENS, CODES), tl.int32)
    if IS_FEW_DIMS:
        z = ()
        for i in tl.static_range(NUM_DIMS):
            z = z + (tl.load(tokens + rows * NUM_DIMS + i, mask=is_row, other=0.0)[:, None],)  # type: ignore[assignment]  # noqa: RUF005
    unroll: tl.constexpr = 2 if IS_FEW_DIMS else 1  # the second block is loaded before the first is computed
    for start in tl.range(first, tl.minimum(first + codes_a_split, K), CODES, loop_unroll_factor=unroll):
        columns = start + tl.arange(0, CODES)  # (CODES,)
        is_column = columns < K
        norm = tl.load(half_norms + columns, mask=is_column, other=float("inf"))
        if IS_FEW_DIMS:
            score = tl.broadcast_to(norm[None, :], (TOKENS, CODES))
            for i in tl.static_range(NUM_DIMS):
                e = tl.load(codes + i * K + columns, mask=is_column, other=0.0)
                score -= z[i] * e[None, :]
        else:
            dot = tl.zeros((TOKENS, CODES), tl.float32)
            for part in range(0, d, DIMS):
                dims = part + tl.arange(0, DIMS)
                z_part = tl.load(
                    tokens + rows[:, None] * d + dims[None, :], mask=is_row[:, None] & (dims < d)[None, :], other=0.0
                )
                e = tl.load(
                    codes + dims[:, None] * K + columns[None, :],
                    mask=is_column[None, :] & (dims < d)[:, None],
                    other=0.0,
                )
                dot = tl.dot(z_part, e, dot, input_precision=PRECISION)  # (TOKENS, CODES)
            score = norm[None, :] - dot
        is_nearer = score < best  # never, where it is not a number
        best = tl.where(is_nearer, score, best)
        best_start = tl.where(is_nearer, start, best_start)
    nearest = tl.min(best, 1)  # (TOKENS,)
    index = best_start + tl.arange(0, CODES)[None, :]
    index = tl.min(tl.where(best == nearest[:, None], index, 2147483647), 1)
    tl.store(scores + split * N + rows, nearest, mask=is_row)
    tl.store(indices + split * N + rows, index, mask=is_row)


def search_fused(z: Tensor, codebook: Tensor) -> Tensor:
    """(N, d) tokens, (K, d) codes, float32, on one GPU, -> (N,) int64, the nearest of each token.

    Memory beyond the arguments: d + 1 floats a code, and 8 bytes a token and split; no host synchronisation.
    """
    (N, d), K = z.shape, len(codebook)
    if not N:
        return torch.empty(0, dtype=torch.int64, device=z.device)
    is_few_dims = d <= FEW_DIMS
    precision = precision_of(z.device)
    block = block_of(d, is_few_dims, precision)
    z, codes = z.contiguous(), codebook.T.contiguous()  # (d, K): neighbouring threads read neighbouring codes
    half_norms = torch.linalg.vector_norm(codebook, dim=1).square_().div_(2)  # (K,)
    blocks = triton.cdiv(N, block.tokens)
    splits = max(1, min(PROGRAMS // blocks, triton.cdiv(K, 8 * block.codes)))
    codes_a_split = triton.cdiv(triton.cdiv(K, splits), block.codes) * block.codes
    splits = triton.cdiv(K, codes_a_split)
    scores = z.new_empty(splits, N)
    indices = torch.empty(splits, N, dtype=torch.int32, device=z.device)
    with torch.cuda.device_of(z):  # Triton launches on the current device
        _nearest_kernel[(blocks, splits)](
            z, codes, half_norms, scores, indices, N, K, d, codes_a_split,
            IS_FEW_DIMS=is_few_dims, NUM_DIMS=d if is_few_dims else 0, TOKENS=block.tokens, CODES=block.codes,
            DIMS=block.dims, PRECISION=precision, num_warps=block.num_warps,
        )  # fmt: skip
    winner = scores.argmin(0, keepdim=True)  # of equal scores the first split: the lowest code
    return indices.gather(0, winner)[0].long()


def precision_of(device: torch.device) -> str:
    """Of `tl.dot`: three TF32 products on tensor cores, whose error is 2^-22 of |z| |e|, where there are such."""
    has_tf32 = device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) >= (8, 0)
    return "tf32x3" if has_tf32 else "ieee"


def block_of(d: int, is_few_dims: bool, precision: str) -> Block:
    """As large as 255 registers a thread allow without spilling."""
    if is_few_dims:
        return Block(tokens=64 if d <= 8 else 32, codes=32, dims=0, num_warps=4)
    if precision == "tf32x3":
        return Block(tokens=128, codes=64, dims=16, num_warps=8)
    return Block(tokens=64, codes=64, dims=16, num_warps=4)
