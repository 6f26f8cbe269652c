"""How much of a codebook is used. Definitions differ between papers; each metric here says which one it is.

Letters: B images, h x w tokens, K codes.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def count_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Indices of any shape -> how often each code occurs (K,) int64. ValueError: a code outside [0, K)."""
    indices = indices.flatten()
    if indices.numel():
        low, high = (int(value) for value in indices.aminmax())
        if low < 0 or high >= codebook_size:
            raise ValueError(
                f"Code {low if low < 0 else high} is not in the codebook, which has {codebook_size} codes. "
                "Give the metric the codebook_size of the quantizer that made the indices."
            )
    return torch.bincount(indices, minlength=codebook_size)


class CodebookUsage(Metric):
    """Usage, perplexity and dead codes over everything seen since `reset`.

    Over one training epoch this is B's utilisation (`usage/epoch`, B-Table 2), over the validation set
    `usage/val`. `compute` returns

    - usage: percent of the K codes seen at least once, 0 to 100;
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
    """Percent of the codes that 256 test images use, averaged over the test set (A-Table 4, `usage/batch`).

    Consecutive images are regrouped into groups of exactly `batch_images`, whatever the loader's batch size.
    An incomplete last group is left out, unless there is no complete one: then the images seen are the one
    group. With several processes each groups its own images, and the mean is over all groups.
    """

    full_state_update = True  # forward() must not split a group
    pending_used: Tensor
    num_pending: Tensor
    usage_sum: Tensor
    num_groups: Tensor

    def __init__(self, codebook_size: int, batch_images: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size = codebook_size
        self.batch_images = batch_images
        # The group being filled: which codes it uses (K,), and how many images are in it.
        self.add_state("pending_used", torch.zeros(codebook_size, dtype=torch.bool), dist_reduce_fx="max")
        self.add_state("num_pending", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("usage_sum", torch.tensor(0), dist_reduce_fx="sum")  # codes used, summed over complete groups
        self.add_state("num_groups", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Adds the images' indices (B, h, w) int64, or any (B, ...). ValueError: an index outside [0, K)."""
        while len(indices):
            group, indices = indices.tensor_split([self.batch_images - int(self.num_pending)])
            self.pending_used = self.pending_used | (count_codes(group, self.codebook_size) > 0)  # (K,)
            self.num_pending = self.num_pending + len(group)
            if int(self.num_pending) == self.batch_images:
                self.usage_sum = self.usage_sum + self.pending_used.count_nonzero()
                self.num_groups = self.num_groups + 1
                self.pending_used = torch.zeros_like(self.pending_used)
                self.num_pending = torch.zeros_like(self.num_pending)

    def compute(self) -> Tensor:
        """Percent, 0 to 100, a scalar."""
        if self.num_groups == 0:
            return 100 * self.pending_used.count_nonzero() / self.codebook_size
        return 100 * self.usage_sum / (self.num_groups * self.codebook_size)
