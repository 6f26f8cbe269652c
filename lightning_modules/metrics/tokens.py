"""How well a prior predicts tokens. Letters: B images, T tokens of an image."""

import torch
from torch import Tensor

from lightning_modules.distributed import all_reduce_sum

NATS_PER_BIT = 0.6931471805599453


class BitsPerToken:
    """Mean negative log-likelihood of the token at each position, teacher-forced, over the images of all ranks."""

    def __init__(self, num_tokens: int, device: torch.device) -> None:
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.nats = torch.zeros(num_tokens, dtype=dtype, device=device)  # (T,), summed over images
        self.num_images = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, nats: Tensor) -> None:
        """(B, T)."""
        self.nats += nats.sum(0)
        self.num_images += len(nats)

    def compute(self) -> tuple[Tensor, str]:
        """Bits (T,) and the protocol id. Collective, once."""
        nats, num_images = all_reduce_sum(self.nats), all_reduce_sum(self.num_images)
        return nats / num_images / NATS_PER_BIT, f"bits-per-token/teacher-forced/n{int(num_images)}"
