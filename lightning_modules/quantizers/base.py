"""What every quantizer shares: its configuration, its output, and the two-term VQ loss.

Shapes: K codes of d dimensions; latents come as (..., d), channels last.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.quantizers.search import Partition, nearest_code, search_ranks


@dataclass
class QuantizerConfig:
    """Options common to all quantizers.

    `commitment_weight` multiplies ||z - sg(e)||^2 (it moves the encoder), `codebook_weight` multiplies
    ||sg(z) - e||^2 (it moves the codes). Paper A: 0.25 and 1.0. Paper B and taming's `legacy=True`: 1.0 on the
    commitment term and the small weight on the codebook term.
    """

    name: str = ""
    commitment_weight: float = 0.25
    codebook_weight: float = 1.0
    trains_codes: ClassVar[bool] = True  # by gradient, so that `codebook_weight` has something to move

    @property
    def label(self) -> str:
        """What tells two of the same name apart in the names of runs; "" = nothing."""
        return ""

    def check(self, codebook_size: int, code_dim: int) -> None:
        """Raises ValueError for sizes or options that this quantizer cannot have. Makes no tensor."""
        if codebook_size < 1 or code_dim < 1:
            raise ValueError(f"codebook_size={codebook_size} and code_dim={code_dim} must be at least 1")
        if self.codebook_weight and not self.trains_codes:
            raise ValueError(
                f"quantizer.codebook_weight={self.codebook_weight}: the codes of '{self.name}' get no gradient; "
                "set it to 0"
            )


class QuantizerOutput(NamedTuple):
    quantized: (
        Tensor  # (..., d), equal to lookup(indices) bit for bit; of what gradient reaches the latents, see the class
    )
    indices: Tensor  # (...), int64 in [0, K)
    loss: Tensor  # scalar: of most the weighted commitment term + the weighted codebook term


class Quantizer(nn.Module, ABC):
    """Maps latents (..., d) to codes of a codebook (K, d). Knows nothing of images.

    Subclasses give `codebook()`. Those with another gradient override `pass_gradient`, those with a loss or a search
    of their own `forward`, and those that need no table to look up a code `lookup`.
    """

    searches: ClassVar[float] = 1.0  # products of all latents with all codes in a training step, for counting costs
    flags: tuple[str, ...] = ()  # bool and int attributes that checkpoints keep, as tensors of their names

    def __init__(self, config: QuantizerConfig, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        config.check(codebook_size, code_dim)
        self.config = config
        self.codebook_size = codebook_size
        self.code_dim = code_dim
        self.partition = Partition()  # saves the search time, decides nothing
        self.num_waited = 0  # training forwards made without quantization
        self.num_forwards = 1  # of an optimizer step

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A flag is a Python value, because the host would wait for the device to read a buffer at each forward."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.flags:
            destination[prefix + name] = torch.tensor(getattr(self, name), device="cpu")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self.flags:
            value = state_dict.pop(prefix + name, None)  # of a copy, which `load_state_dict` has made
            if value is not None:
                setattr(self, name, value.item())
            elif strict:
                missing_keys.append(prefix + name)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def start_step(self, num_forwards: int) -> None:
        """Called before the `num_forwards` training forwards, one a micro-batch, of an optimizer step."""
        self.num_forwards = num_forwards
        self.num_waited -= self.num_waited % num_forwards  # those of a step that an epoch's end left unfinished

    def waits(self, steps: int) -> bool:
        """Counts a training forward, and says whether it is one of the first `steps` optimizer steps'."""
        if self.num_waited >= steps * self.num_forwards:
            return False
        self.num_waited += 1
        return True

    def pass_latents(self, z: Tensor) -> QuantizerOutput:
        """Latents (..., d) without quantization, as code 0; the codes are in the loss with a gradient of zero."""
        z = self.prepare(z)
        nothing = sum((0 * parameter.sum() for parameter in self.parameters()), start=z.new_zeros(()))  # for DDP
        return QuantizerOutput(z, torch.zeros(z.shape[:-1], dtype=torch.int64, device=z.device), nothing)

    @abstractmethod
    def codebook(self) -> Tensor:
        """The (K, d) table that latents are compared with and decoding looks up."""

    def lookup(self, indices: Tensor) -> Tensor:
        """Codes of `indices` (...) -> (..., d)."""
        return F.embedding(indices, self.codebook())

    def prepare(self, z: Tensor) -> Tensor:
        """Latents (..., d) as they are compared with the codes, float32."""
        return z.float()

    @torch.no_grad()
    def ranked(self, z: Tensor, ranks: Sequence[int], among: Tensor | None = None) -> Tensor:
        """Indices (..., R) of each latent's M-th nearest code, for the R values M of `ranks`; M = 1 is the nearest.

        `among`: indices (n,) of the only codes that count. For measurements (B-Figure 5). ValueError: an M outside
        [1, K], or [1, n].
        """
        latents, codes = self.to_rank(z)
        indices = search_ranks(latents, codes if among is None else codes[among], ranks)  # (N, R)
        return (indices if among is None else among[indices]).view(*z.shape[:-1], len(ranks))

    def to_rank(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (N, d) and codes (K, d) by whose distance the codes are ranked."""
        return self.prepare(z).flatten(0, -2), self.codebook()

    def forward(self, z: Tensor) -> QuantizerOutput:
        z = self.prepare(z)
        codebook = self.codebook()
        indices = nearest_code(z.flatten(0, -2), codebook, self.partition).view(z.shape[:-1])
        codes = self.chosen(indices, codebook)  # (..., d)
        return QuantizerOutput(self.pass_gradient(z, codes), indices, self.vq_loss(z, codes))

    def chosen(self, indices: Tensor, codebook: Tensor) -> Tensor:
        """Rows of `codebook` (K, d), with a gradient to what makes it: (...) -> (..., d)."""
        return F.embedding(indices, codebook)

    def pass_gradient(self, z: Tensor, codes: Tensor) -> Tensor:
        """The values of `codes` (..., d), bit for bit, with a gradient that reaches the latents z (..., d) alone."""
        return straight_through(z, codes)

    def vq_loss(self, z: Tensor, codes: Tensor) -> Tensor:
        """commitment_weight * ||z - sg(e)||^2 + codebook_weight * ||sg(z) - e||^2, means over all elements."""
        commitment = F.mse_loss(z, codes.detach())
        codebook = F.mse_loss(codes, z.detach())
        return self.config.commitment_weight * commitment + self.config.codebook_weight * codebook


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The codes' values with the latents' gradient (van den Oord et al. 2017, section 3.2).

    Written as e + (z - sg(z)), whose second part is exactly zero, so that the value equals the code bit for bit;
    the usual z + sg(e - z) differs from it by rounding.
    """
    return codes.detach() + (z - z.detach())
