"""Nearest-code search that skips most codes: exact, for many codes of few dimensions on a CPU.

A k-d tree (Friedman, Bentley and Finkel 1977) parts the codes into cells of equal size. A code in a cell is at least as
far from a token as the box around the cell's codes. A token searches the cell of the nearest box, and then only the
cells whose box is nearer than the code that it found. Of 4,096 x 100,000 pairs of normal vectors it compares 9 % at 8
dims. The more dims, the fewer cells can be skipped: the search then gives up, and the caller compares all pairs
(`tiled`).

Making the tree costs as much as a search, but which codes share a cell decides nothing but speed: boxes are computed
anew at each search, so codes may move, and a caller whose codes move slowly keeps the tree (`Partition`).

Shapes: N tokens, K codes, d dims; C cells of W codes; P pairs of a token and a cell, in G blocks of T.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

MAX_DIMS = 16  # above, next to nothing can be skipped
MIN_PAIRS = 2**26  # N K below which parting the codes costs more than it saves
CODES_A_CELL = 200  # at least, and less than twice as many
BLOCK = 16  # of codes: a cell is filled up to whole blocks, see `first_minimum`
MAX_SHARE = 0.5  # of the pairs: above, comparing all of them in order is quicker
PATIENCE = 100  # searches that do not try again after one that gave up
WORSE = 1.5  # times the share of pairs that a new tree left to compare: then the codes have moved too far
TOKENS = 8192  # searched together: bounds the C x N matrix
TILE = 2**20  # scores in memory for each thread: 4 MiB
SLACK = 1e-5  # of the squared norms: bounds and distances are rounded


class Partition:
    """The tree of a codebook, made by its first large search and kept for the next ones."""

    def __init__(self) -> None:
        self.order: Tensor | None = None  # (C, W) codes of each cell, ascending
        self.num_codes = 0
        self.share = 0.0  # of the pairs, compared by the first search
        self.pause = 0

    def cells(self, codebook: Tensor) -> Tensor:
        if self.order is None or self.num_codes != len(codebook):
            self.order, self.num_codes, self.share = part(codebook), len(codebook), 0.0
        return self.order

    def note(self, share: float) -> None:
        """That a search compared this share of the pairs."""
        self.share = self.share or share
        if share > WORSE * self.share:
            self.order = None
        if share > MAX_SHARE:
            self.pause = PATIENCE


def part(codebook: Tensor) -> Tensor:
    """(K, d) codes -> (C, W) their cells: halved at the median, again and again, where each part is widest.

    Code 0 fills up what is left of C x W.
    """
    K = len(codebook)
    levels = max(1, K // CODES_A_CELL).bit_length() - 1
    W = -(-K // (2**levels * BLOCK)) * BLOCK
    order = torch.zeros(1, 2**levels * W, dtype=torch.int64)
    order[0, :K] = torch.arange(K)
    for _ in range(levels):
        sample = codebook[order[:, :: max(1, order.numel() // 2**14)]]  # any dim is correct
        dim = (sample.amax(1) - sample.amin(1)).argmax(1, keepdim=True)
        halves = np.argpartition(codebook[order, dim].numpy(), order.shape[1] // 2, axis=1)
        order = order.gather(1, torch.from_numpy(halves)).view(2 * len(order), -1)
    return order.sort(1).values


def search_cells(z: Tensor, codebook: Tensor, partition: Partition) -> Tensor | None:
    """(N, d) tokens, (K, d) codes, float32 on the CPU -> (N,) int64; None where most cells would be searched."""
    if partition.pause:
        partition.pause -= 1
        return None
    cells = Cells(codebook, partition.cells(codebook))
    parts = []
    for tokens in z.split(TOKENS):
        indices, share = cells.search(tokens)
        partition.note(share)
        if indices is None:
            return None
        parts.append(indices)
    return torch.cat(parts)


class Cells:
    """Codes by cell, and the boxes around them."""

    def __init__(self, codebook: Tensor, order: Tensor) -> None:
        self.order = order
        codes = codebook.index_select(0, order.flatten()).view(*order.shape, -1)  # (C, W, d)
        self.low, self.high = torch.aminmax(codes, dim=1)  # (C, d)
        half_norms = codes.square().sum(2, keepdim=True).div_(2)
        self.max_norm = 2 * half_norms.max()
        self.table = torch.cat([codes, half_norms], 2)  # (C, W, d+1)
        self.buffer = codes.new_empty(max(torch.get_num_threads() * TILE, 64 * order.shape[1]))

    def search(self, z: Tensor) -> tuple[Tensor | None, float]:
        """(N, d) tokens -> (N,) int64 and the share of all pairs that it compared; None if that is too large."""
        N, C = len(z), len(self.order)
        tokens = torch.cat([-z, z.new_ones(N, 1)], 1)  # score with (e, ||e||^2/2): ||e||^2/2 - z e
        bounds = torch.cat([self.bounds(rows) for rows in z.split(128)], 1)  # (C, N)
        own = bounds.T.contiguous().argmin(1)  # (N,), sooner than along the rows
        own_cells, own_rows = own.sort()
        own_minima = self.minima(tokens, own_cells, own_rows)
        best = torch.empty(N).index_copy_(0, own_rows, own_minima)
        norms = z.square().sum(1)
        is_near = bounds <= 2 * best + norms + SLACK * (norms + self.max_norm)
        is_near[own, torch.arange(N)] = False
        cells, rows = is_near.nonzero(as_tuple=True)  # (P,), sorted by cell
        if (share := (N + len(cells)) / (N * C)) > MAX_SHARE:
            return None, share
        minima = self.minima(tokens, cells, rows)
        best.scatter_reduce_(0, rows, minima, "amin")
        # Of the cells that hold a nearest code, more than one where equal codes were parted, the lowest code wins.
        cells, rows, minima = (torch.cat(pair) for pair in ((cells, own_cells), (rows, own_rows), (minima, own_minima)))
        is_best = minima == best[rows]
        cells, by_cell = cells[is_best].sort()
        rows = rows[is_best][by_cell]
        codes = self.first_codes(tokens, cells, rows)
        indices = torch.zeros(N, dtype=torch.int64)
        return indices.scatter_reduce_(0, rows, codes, "amin", include_self=False), share

    def bounds(self, z: Tensor) -> Tensor:
        """(n, d) tokens -> (C, n) squared distances to the boxes."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        square = z.new_zeros(len(self.low), len(z))
        gap = torch.empty_like(square)
        for dim in range(z.shape[1]):
            torch.sub(middle[:, dim, None], z[:, dim], out=gap).abs_().sub_(half[:, dim, None]).clamp_(min=0)
            square.addcmul_(gap, gap)
        return square

    def scores(self, tokens: Tensor, cells: Tensor, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The scores of tokens rows[i] with all codes of cells[i] (P,), which are sorted: for some blocks at a time.

        A block holds T pairs of one cell, its last one also in place of those that it lacks: which cells (G,), which
        pairs (G, T), scores (G, T, W).
        """
        present, counts = cells.unique_consecutive(return_counts=True)
        T = 64 if len(cells) > 32 * len(present) else 16
        W = self.table.shape[1]
        blocks = (counts + T - 1) // T
        owner = torch.arange(len(present)).repeat_interleave(blocks)  # (G,)
        place = torch.arange(len(owner)) - (blocks.cumsum(0) - blocks)[owner]
        end = counts.cumsum(0)
        pairs = ((end - counts)[owner] + place * T)[:, None] + torch.arange(T)
        pairs = torch.minimum(pairs, end[owner, None] - 1)  # (G, T)
        size = max(1, len(self.buffer) // (T * W))
        for chunk, at in zip(present[owner].split(size), pairs.split(size), strict=True):
            out = self.buffer[: at.numel() * W].view(*at.shape, W)
            yield chunk, at, torch.bmm(tokens[rows[at]], self.table.index_select(0, chunk).transpose(1, 2), out=out)

    def minima(self, tokens: Tensor, cells: Tensor, rows: Tensor) -> Tensor:
        """The smallest score of each pair (P,)."""
        result = tokens.new_empty(len(cells))
        for _, pairs, scores in self.scores(tokens, cells, rows):
            result[pairs] = scores.amin(2)
        return result

    def first_codes(self, tokens: Tensor, cells: Tensor, rows: Tensor) -> Tensor:
        """The lowest code of the smallest score of each pair (P,)."""
        result = torch.empty_like(cells)
        for chunk, pairs, scores in self.scores(tokens, cells, rows):
            result[pairs] = self.order[chunk].gather(1, first_minimum(scores))
        return result


def first_minimum(scores: Tensor) -> Tensor:
    """(G, T, W), W a multiple of BLOCK -> index of each row's first minimum (G, T).

    `min` that keeps the index is not vectorised: `amin` finds the block, and only that block is searched.
    """
    blocks = scores.view(-1, scores.shape[2] // BLOCK, BLOCK)
    block = blocks.amin(2).min(1).indices
    return (block * BLOCK + blocks[torch.arange(len(blocks)), block].min(1).indices).view(scores.shape[:2])
