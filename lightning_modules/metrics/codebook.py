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

    Consecutive images are regrouped into groups of exactly `batch_images`, whatever the loader's batch size and the
    number W of processes, each of which has every W-th image. An incomplete last group is left out, unless there is no
    complete one: then the images seen are the one group.
    """

    full_state_update = True  # forward() must not split a group
    used: list[Tensor]
    group: list[Tensor]
    num_images: Tensor

    def __init__(self, codebook_size: int, batch_images: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.codebook_size = codebook_size
        self.batch_images = batch_images
        self.add_state("used", [], dist_reduce_fx="cat")  # [(1, K)] bool, which codes a group uses here, and
        self.add_state("group", [], dist_reduce_fx="cat")  # [(1,)] int64, which group that is
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, indices: Tensor) -> None:
        """Adds the images' indices (B, h, w) int64, or any (B, ...). ValueError: an index outside [0, K)."""
        first = int(self.num_images)
        places = (first + torch.arange(len(indices))) * world_size() + rank()  # (B,) in the data set
        self.num_images = self.num_images + len(indices)
        for group, size in zip(*torch.unique_consecutive(places // self.batch_images, return_counts=True), strict=True):
            members, indices = indices.tensor_split([int(size)])
            used = (count_codes(members, self.codebook_size) > 0)[None]  # (1, K)
            if self.group and int(self.group[-1]) == int(group):
                self.used[-1] = self.used[-1] | used
            else:
                self.used.append(used)
                self.group.append(group[None].to(used.device))

    def compute(self) -> Tensor:
        """Percent, 0 to 100, a scalar."""
        used, group = dim_zero_cat(self.used), dim_zero_cat(self.group)  # (g, K), (g,)
        num_groups = max(1, int(self.num_images) // self.batch_images)
        by_group = [used[group == index].any(0).count_nonzero() for index in range(num_groups)]
        return 100 * torch.stack(by_group).sum() / (num_groups * self.codebook_size)
