"""How much of a codebook is used. Definitions differ between papers; each metric here says which one it is.

Shapes: B images, h x w tokens, K codes.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.distributed import rank, world_size


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Indices of any shape -> how often each code occurs (K,) int64.

    The host does not wait for a GPU, as it would in `bincount`; there an index outside [0, K) fails an assertion.

    Raises:
        ValueError: on a CPU, an index outside [0, K).
    """
    indices = indices.flatten()
    counts = torch.zeros(codebook_size, dtype=torch.int64, device=indices.device)
    try:
        return counts.index_add_(0, indices, torch.ones_like(indices))
    except IndexError:
        low, high = (int(value) for value in indices.aminmax())
        raise ValueError(
            f"Code {low if low < 0 else high} is not in the codebook, which has {codebook_size} codes. "
            "Give the metric the codebook_size of the quantizer that made the indices."
        ) from None


def reachable_usage(num_tokens: Tensor, codebook_size: int) -> Tensor:
    """Percent of the codes that this many tokens, drawn evenly over them, are expected to use."""
    return -100 * torch.expm1(-num_tokens.float() / codebook_size)


def effective_rank(codes: Tensor, counts: Tensor) -> Tensor:
    """How many dimensions tokens fill, 1 to d; 0 where all have one code.

    Of codes (n, d), each of which occurs `counts` (n,) times among the tokens.
    The exponential of the entropy of the centred tokens' singular values, as shares of their sum (Roy and Vetterli,
    "The effective rank: a measure of effective dimensionality", EUSIPCO 2007).
    """
    codes, counts = codes.cpu().double(), counts.cpu().double()  # not every GPU has float64
    weights = counts / counts.sum()
    centred = codes - weights @ codes
    variances = torch.linalg.eigvalsh(centred.T @ (weights[:, None] * centred))  # (d,)
    singular_values = variances.clamp(min=0).sqrt()  # over the root of the number of tokens
    shares = singular_values / singular_values.sum()  # NaN where all tokens have one code
    return torch.special.entr(shares).sum().exp().nan_to_num(0.0)


class CodebookUsage(Metric):
    """Usage, perplexity and dead codes over everything seen since `reset`.

    Over one training epoch this is B's utilisation (`usage/epoch`, B-Table 2), over the validation set
    `usage/val`. `compute` returns

    - usage: percent of the K codes seen at least once, 0 to 100;
    - reachable: what n tokens drawn evenly over the codes use on average, 100 (1 - exp(-n / K));
    - perplexity: exp of the entropy of the code frequencies, 1 to K;
    - dead_codes: number of codes never seen, int64.
    """

    full_state_update = False
    code_counts: Tensor

    def __init__(self, codebook_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size = codebook_size
        self.add_state("code_counts", torch.zeros(codebook_size, dtype=torch.int64), dist_reduce_fx="sum")
        self._computed_counts: Tensor | None = None

    def update(self, indices: Tensor) -> None:
        """Counts indices, int64 of any shape. ValueError: an index outside [0, K)."""
        self.code_counts = self.code_counts + count_codes(indices, self.codebook_size)

    def compute(self) -> dict[str, Tensor]:
        self._computed_counts = self.code_counts
        num_used = self.code_counts.count_nonzero()
        frequencies = self.code_counts / self.code_counts.sum().clamp(min=1)  # (K,)
        return {
            "usage": 100 * num_used / self.codebook_size,
            "reachable": reachable_usage(self.code_counts.sum(), self.codebook_size),
            "perplexity": torch.special.entr(frequencies).sum().exp(),
            "dead_codes": self.codebook_size - num_used,
        }

    @property
    def counts(self) -> Tensor:
        """(K,) int64, for a histogram: of all processes once `compute` has run, of this process before."""
        return self.code_counts if self._computed_counts is None else self._computed_counts

    def reset(self) -> None:
        super().reset()
        self._computed_counts = None


class BatchUsage(Metric):
    """Usage of a batch of validation images, averaged over the set (A-Table 4, `usage/batch`).

    A's batch is 256 images of 1,024 tokens: here as many images as have `batch_tokens` tokens. Consecutive images are
    regrouped into groups of exactly that size, whatever the loader's batch size and the number W of processes, each of
    which has every W-th image. An incomplete last group is left out, unless there is no complete one: then the images
    seen are the one group. `compute` returns

    - usage: percent of the K codes that a group uses, 0 to 100;
    - reachable: what the tokens of a group would use, drawn evenly over the codes.
    """

    full_state_update = True  # use update(): forward() would begin a group anew
    used: list[Tensor]
    group: list[Tensor]
    num_images: Tensor

    def __init__(self, codebook_size: int, batch_tokens: int = 256 * 1024, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size = codebook_size
        self.batch_tokens = batch_tokens
        self.tokens_per_image = self.tokens_of_group = 0  # the latter of the last compute; both stay through `reset`
        self.add_state("used", [], dist_reduce_fx="cat")  # [(1, K)] bool, which codes a group uses here, and
        self.add_state("group", [], dist_reduce_fx="cat")  # [(1,)] int64, which group that is
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        self.num_seen = 0  # by this process; known to the host, which would wait for a GPU to read a state
        self.last_group = -1

    def update(self, indices: Tensor) -> None:
        """Adds the images' indices (B, h, w) int64, or any (B, ...). ValueError: an index outside [0, K)."""
        self.tokens_per_image = indices[0].numel()
        places = torch.arange(self.num_seen, self.num_seen + len(indices), device="cpu") * world_size() + rank()
        self.num_seen += len(indices)
        self.num_images = self.num_images + len(indices)
        groups = places // self.batch_images  # (B,) of each image, by its place in the data set
        for group, size in zip(*torch.unique_consecutive(groups, return_counts=True), strict=True):
            members, indices = indices.tensor_split([int(size)])
            used = (count_codes(members, self.codebook_size) > 0)[None]  # (1, K)
            if int(group) == self.last_group:
                self.used[-1] = self.used[-1] | used
            else:
                self.used.append(used)
                self.group.append(group[None].to(used.device))
                self.last_group = int(group)

    @property
    def batch_images(self) -> int:
        return max(1, self.batch_tokens // self.tokens_per_image)

    def compute(self) -> dict[str, Tensor]:
        used, group = dim_zero_cat(self.used), dim_zero_cat(self.group)  # (g, K), (g,)
        num_images = int(self.num_images)
        num_groups = max(1, num_images // self.batch_images)
        by_group = [used[group == index].any(0).count_nonzero() for index in range(num_groups)]
        self.tokens_of_group = min(self.batch_images, num_images) * self.tokens_per_image
        return {
            "usage": 100 * torch.stack(by_group).sum() / (num_groups * self.codebook_size),
            "reachable": reachable_usage(torch.tensor(self.tokens_of_group, device=used.device), self.codebook_size),
        }
