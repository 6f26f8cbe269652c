"""The nearest code of each token.

Read `dense` first, the formula; then `tiled`, the same without the matrix of all scores; then `cells`, which skips most
of the codes, and `fused`, one kernel for GPUs.

Shapes: N tokens, K codes, d dims.
"""

import functools
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_modules.quantizers.search import cells
from lightning_modules.quantizers.search.cells import Partition
from lightning_modules.quantizers.search.dense import search_dense, search_ranks
from lightning_modules.quantizers.search.tiled import search_tiled

MAX_FUSED_DIMS = 768  # CLIP's features, the widest codes in use; wider ones are searched tile by tile


def nearest_code(z: Tensor, codebook: Tensor, partition: Partition | None = None) -> Tensor:
    """Index of the code with the smallest Euclidean distance to each token.

    Computes in float32, under autocast too. Of equal codes the lowest index wins, up to rounding. Scores are
    rounded relative to ||z|| ||e|| and ||e||², so squared distances that differ by less than about 1e-6 of
    these count as equal; that matters only where tokens and codes form a cluster far from the origin for its
    size.

    Memory beyond the arguments: 1 MiB a CPU thread (32 MiB on a GPU), about d + 12 floats a token and one a code;
    where codes are skipped, another d + 6 floats a code and at most 24 MiB; plus a float32 copy of arguments of another
    dtype. With Triton, which comes with torch's CUDA builds, a GPU needs d + 1 floats a code, no tiles and no
    synchronisation (`fused`); without it there is one synchronisation. On a CPU each tile is two short parallel
    regions: where other processes want the same cores, set OMP_WAIT_POLICY=passive, or threads that spin at the end of
    each region make it several times slower.

    `torch.export` records the dense formula, whose N x K scores are in memory at once.

    Args:
        z: tokens (N, d), any floating dtype.
        codebook: codes (K, d), on the same device.
        partition: of a codebook that is searched again, of K codes each time: saves time, and changes no index.

    Returns:
        (N,) int64 in [0, K).

    Raises:
        ValueError: the shapes do not match, or the codebook is empty.
    """
    if z.ndim != 2 or codebook.ndim != 2 or z.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"nearest_code needs z (N, d) and codebook (K, d) of the same d, got {tuple(z.shape)} and "
            f"{tuple(codebook.shape)}; flatten the leading dimensions of z with z.flatten(0, -2)."
        )
    if len(codebook) == 0:
        raise ValueError("nearest_code got an empty codebook (K = 0); it needs at least one code.")
    if torch.compiler.is_exporting():
        return search_dense(z.float(), codebook.float())
    return _search(z, codebook, partition or Partition())


@torch.compiler.disable  # a compiler would unroll the loops over tiles
@torch.no_grad()
def _search(z: Tensor, codebook: Tensor, partition: Partition) -> Tensor:
    with torch.autocast(z.device.type, enabled=False), _full_float32():
        z, codebook = z.float(), codebook.float()
        is_sparse = z.shape[1] <= cells.MAX_DIMS and len(z) * len(codebook) >= cells.MIN_PAIRS
        if is_sparse and z.device.type == "cpu":
            indices = cells.search_cells(z, codebook, partition)
            if indices is not None:
                return indices
        if z.device.type == "cuda" and z.shape[1] <= MAX_FUSED_DIMS and has_triton():
            from lightning_modules.quantizers.search.fused import search_fused  # compiles on a GPU alone

            return search_fused(z, codebook)
        return search_tiled(z, codebook)


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32, no bf16: with the 10 or 7 bits of such products the nearest code would often be another."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    saved = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, saved, strict=True):
            backend.fp32_precision = precision


__all__ = ["Partition", "nearest_code", "search_dense", "search_ranks"]
