"""LFQ, lookup-free quantization (MAGVIT-v2, Yu et al. 2023, arXiv 2310.05737, section 3.1): the sign of each dimension.

The codebook is {-1, 1}^d, K = 2^d. The entropy loss keeps the codes in use. Shapes: N latents, d bits.
"""

from dataclasses import dataclass
from math import log2
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.distributed import mean_over_ranks
from lightning_modules.options import neutral
from lightning_modules.quantizers.base import Quantizer, QuantizerConfig, QuantizerOutput


@dataclass
class LFQConfig(QuantizerConfig):
    """`entropy_weight` multiplies equation 5: each latent should be sure of its code, all together should use all.

    Departs from the paper: its weight falls from 0.3 to 0.1 in the first 2,000 steps; here it is constant.
    `temperature` is that of the softmax over -||z - code||^2, which the paper does not state. Public
    codes have 0.01; at it the codes of a latent near 0 are a coin's toss, and the bits are noise (15.0 dB where 1 has
    15.4, 150 steps on CIFAR-10). `entropy_eps` is added inside the logarithm of the codes' entropy: 0 is equation 5,
    1e-5 Open-MAGVIT2's code.
    """

    name: str = "lfq"
    codebook_weight: float = 0.0  # no code is learned
    entropy_weight: float = 0.1
    temperature: float = 1.0
    entropy_eps: float = neutral(0.0)
    trains_codes: ClassVar[bool] = False

    def check(self, codebook_size: int, code_dim: int) -> None:
        super().check(codebook_size, code_dim)
        if codebook_size.bit_length() != code_dim + 1 or codebook_size.bit_count() != 1:  # 2^code_dim may be too large
            bits = max(1, round(log2(codebook_size)))
            raise ValueError(
                f"LFQ needs model.codebook_size = 2^model.code_dim, not {codebook_size} and {code_dim}: take "
                f"{2**bits} and {bits}"
            )
        if self.temperature <= 0:
            raise ValueError(f"quantizer.temperature={self.temperature} must be above 0")


class LFQ(Quantizer):
    """Takes signs and adds the entropy loss; has no parameters, and no state beyond the configuration.

    Raises:
        ValueError: K is not 2^d, or the temperature is not above 0.
    """

    config: LFQConfig
    searches: ClassVar[float] = 0.0
    powers: Tensor  # (d,) int64: 1, 2, 4, ...

    def __init__(self, config: LFQConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__(config, codebook_size, code_dim)
        self.register_buffer("powers", 2 ** torch.arange(code_dim), persistent=False)

    def codebook(self) -> Tensor:
        return self.lookup(torch.arange(self.codebook_size, device=self.powers.device))

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of `indices` (...) -> (..., d) of -1 and 1: bit i of the index is dimension i (equation 4)."""
        return ((indices.unsqueeze(-1) & self.powers) != 0).float() * 2 - 1

    def forward(self, z: Tensor) -> QuantizerOutput:
        z = z.float()
        indices = ((z > 0) * self.powers).sum(-1)  # equations 3 and 4
        codes = self.lookup(indices)
        of_latents, of_codes = self.entropies(z.flatten(0, -2))
        loss = self.vq_loss(z, codes) + self.config.entropy_weight * (of_latents - of_codes)
        return QuantizerOutput(self.pass_gradient(z, codes), indices, loss)

    def entropies(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """E[H(q(z))] and H(E[q(z)]) of latents z (N, d), in nats (equation 5).

        The codes' entropy in training is that of the global batch: of the mean of q over all ranks.

        q(z) is the softmax of -||z - code||^2 / temperature over the K codes. It is the product of independent bits, so
        the first term is a sum over d, and the mean of the second, exact too, is one product of (N, 2^(d/2)) matrices:
        K + 2 N sqrt(K) numbers instead of N K. (The paper splits d into groups where K is large, an approximation.)
        """
        logits = 4 / self.config.temperature * z  # log-odds of a bit: ||z + 1||^2 - ||z - 1||^2 = 4 z
        of_latents = (F.softplus(logits) - logits * logits.sigmoid()).sum(-1).mean()
        half = self.code_dim // 2
        with torch.autocast(z.device.type, enabled=False):
            mean = joint(logits[:, half:]).T @ joint(logits[:, :half]) / z.shape[0]  # (2^(d - half), 2^half)
            if self.training:
                mean = mean_over_ranks(mean)
        smallest = torch.finfo(mean.dtype).tiny  # the gradient of 0 log 0 would be infinite
        return of_latents, -(mean * (mean + self.config.entropy_eps).clamp_min(smallest).log()).sum()


def joint(logits: Tensor) -> Tensor:
    """Log-odds of independent bits (N, m) -> probability of every pattern (N, 2^m), the first bit the lowest."""
    patterns = logits.new_ones(logits.shape[0], 1)
    for bit in logits.unbind(1):
        odds = bit.unsqueeze(1)
        patterns = torch.cat([patterns * (-odds).sigmoid(), patterns * odds.sigmoid()], dim=1)
    return patterns
