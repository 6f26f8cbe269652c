"""Training batches that go on where a stopped run was: their order, and the random numbers of loader processes."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

Batch = dict[str, Tensor]


class SeededBatches(Dataset[Batch]):
    """For loader processes: each batch of `dataset` draws its random numbers from (seed, epoch, its first image) alone.

    So flips and crops depend neither on the number of processes, nor on which of them makes the batch, nor on what it
    made before: a stopped run continues with the same ones. Without loader processes torch's global generator serves,
    whose state is in checkpoints.
    """

    def __init__(self, dataset: Dataset[Batch], seed: int):
        self.dataset, self.seed, self.epoch = dataset, seed, 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        seed = np.random.SeedSequence((self.seed, self.epoch, indices[0])).generate_state(1, np.uint64)
        torch.manual_seed(int(seed[0]))
        return self.dataset.__getitems__(indices)  # type: ignore[attr-defined]


class ResumableSampler(DistributedSampler):
    """Leaves out the first `skip` images of the next pass, and of no later one."""

    skip = 0

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        return islice(super().__iter__(), skip, None)


class ResumableLoader(DataLoader[Batch]):
    """Counts its batches; Lightning keeps the count in checkpoints, so a run stopped in mid-epoch continues there."""

    first = num_given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        assert isinstance(self.sampler, ResumableSampler) and self.batch_size is not None
        self.num_given, self.first = self.first, 0
        self.sampler.skip = self.num_given * self.batch_size
        if isinstance(self.dataset, SeededBatches):
            self.dataset.epoch = self.sampler.epoch
        for batch in super().__iter__():
            self.num_given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"num_given": (self.first or self.num_given) % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = state["num_given"] % len(self)
