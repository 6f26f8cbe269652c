"""Data of models of latents: the encoder's un-quantized output, kept once and read from disk as it is needed.

Shapes: B images a batch, N images of a split, V views of each, d dimensions and h x w places of a latent.
"""

import numpy as np

from datamodules.token_files import LatentMeta
from datamodules.tokens import TokenDataset, TokensDataModule


class LatentDataset(TokenDataset):
    """{"latents": (B, d, h, w) float32, "label": (B,)}, whatever they are kept as; see `TokenDataset`."""

    dtype = np.float32


class LatentsDataModule(TokensDataModule):
    """{"latents": (B, d, h, w) float32, "label": (B,) int64} of a finished folder; see `TokensDataModule`."""

    dataset_class = LatentDataset
    meta_class = LatentMeta
