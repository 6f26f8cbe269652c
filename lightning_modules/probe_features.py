"""What a linear probe reads: of VIM's blocks, of a tokenizer, or the pixels themselves.

Shapes: n blocks, B images, T tokens of an image, D width.
"""

from abc import ABC, abstractmethod
from itertools import islice

import torch
from torch import Tensor, nn

from lightning_modules.frozen import freeze
from lightning_modules.networks.gpt import GPT
from lightning_modules.tokenizer import Tokenizer

TOKENIZER_FEATURES = ("encoder", "latents", "codes")


class FrozenFeatures(ABC):
    """What is probed: features (n, B, D) float32 of n blocks, of a model that is not changed.

    Not a module: the model stays in eval mode, takes no gradients, and is in no checkpoint of the probe.
    """

    name: str  # in protocol ids
    blocks: list[int]  # their numbers, from 1
    width: int
    summary: str  # of what, in protocol ids: mean-of-64-tokens

    def __init__(self, model: nn.Module) -> None:
        self.model = freeze(model)

    @abstractmethod
    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        """A batch of the model's input -> features (n, B, D) float32."""


class BlockFeatures(FrozenFeatures):
    """The mean over the T tokens of an image of the output of VIM's blocks, before the final LayerNorm.

    Input: "no class", never a label, then all T tokens. Feature: the mean of slots 1 to T, whose inputs are the tokens;
    slot t has seen the first t of them. Slot 0, the start, is left out: it has seen nothing of the image.
    """

    name = "vim/no-class-start"

    def __init__(self, gpt: GPT, blocks: list[int]) -> None:
        super().__init__(gpt)
        self.gpt = gpt
        self.blocks = sorted(blocks) or list(range(1, gpt.size.blocks + 1))
        self.width, self.summary = gpt.size.width, mean_of(gpt.num_tokens)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        means = []
        states = self.gpt.hidden_states(batch["tokens"])  # each (B, 1 + T, D)
        for block, state in enumerate(islice(states, self.blocks[-1]), 1):
            if block in self.blocks:
                means.append(state[:, 1:].mean(1, dtype=torch.float32))  # (B, D)
        return torch.stack(means)


class TokenizerFeatures(FrozenFeatures):
    """The mean over an image's tokens of the tokenizer's features, as the only "block"; see the config for which."""

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        super().__init__(tokenizer)
        self.tokenizer, self.name, self.blocks = tokenizer, kind, [1]
        self.width = tokenizer.encoder.width if kind == "encoder" else tokenizer.config.code_dim
        rows, columns = tokenizer.encoder.grid
        self.summary = mean_of(rows * columns)

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        features = self.tokenizer.encoder(batch["image"])  # (B, h, w, D)
        if self.name != "encoder":
            features = self.tokenizer.pre_quant(features)  # (B, h, w, d)
        if self.name == "codes":
            features = self.tokenizer.quantizer(features).quantized
        return features.flatten(1, 2).mean(1, dtype=torch.float32)[None]


class PixelFeatures(FrozenFeatures):
    """All values of the image, in [-1, 1], as the only "block"."""

    name = "pixels"

    def __init__(self, image_size: int) -> None:
        super().__init__(nn.Identity())
        self.blocks, self.width, self.summary = [1], 3 * image_size**2, "all"

    def __call__(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"].flatten(1).float()[None]


def mean_of(num_tokens: int) -> str:
    return f"mean-of-{num_tokens}-tokens"
