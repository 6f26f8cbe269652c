"""A tokenizer in use: images to token ids and back.

Shapes: B images, H x W pixels, h x w tokens, D backbone width, d code dimension.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_modules.base import Module
from lightning_modules.checks import require
from lightning_modules.losses import logit_laplace_mean
from lightning_modules.quantizers import QuantizerOutput
from lightning_modules.tokenizer_config import TokenizerConfig


class TokenizerOutput(NamedTuple):
    reconstruction: Tensor  # (B, 3, H, W) in about [-1, 1]
    prediction: Tensor  # what the decoder gave: the reconstruction, or (B, 6, H, W) with logit-Laplace
    indices: Tensor  # (B, h, w)
    quantizer_loss: Tensor  # scalar


class Codec(Module):
    """Encoder, quantizer and decoder, with the linear maps to and from codes; `Tokenizer` trains them.

    Images are of the size that the model was trained on; a CNN also takes other heights and widths that its
    downsampling divides.
    """

    config: TokenizerConfig
    encoder: Any
    decoder: Any
    pre_quant: nn.Linear
    post_quant: nn.Linear
    quantizer: Any

    def latents(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> what is quantized (B, h, w, d).

        Raises ValueError for images of another size, type or number of channels.
        """
        self.encoder.check_images(image)
        return self.pre_quant(self.encoder(image))

    def encode(self, image: Tensor) -> QuantizerOutput:
        """Images as `latents` takes them -> codes (B, h, w, d), indices (B, h, w) and the quantizer's loss."""
        return self.quantizer(self.latents(image))

    def decode(self, quantized: Tensor) -> Tensor:
        """Codes (B, h, w, d) -> images (B, 3, H, W), about [-1, 1]."""
        return self.to_image(self.predict(quantized))

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Token ids (B, h, w) -> images (B, 3, H, W); equal to the forward pass that gave the ids.

        Raises ValueError for ids of another shape, or that no code has.
        """
        self.check_indices(indices)
        return self.decode(self.quantizer.lookup(indices))

    def check_indices(self, indices: Tensor) -> None:
        self.config.check_tokens()
        is_grid = indices.ndim == 3 and not indices.is_floating_point()
        rows, columns = self.encoder.grid
        require(
            is_grid and self.encoder.fits_grid(*indices.shape[1:]),
            f"token ids are {indices.dtype} {tuple(indices.shape)}, not whole numbers (B, h, w) on the model's grid of "
            f"{rows} x {columns}",
        )
        size = self.config.codebook_size
        require(
            not indices.numel() or bool((indices.min() >= 0) & (indices.max() < size)),
            f"token ids lie in [0, {size}), the codebook's; given are others",
        )

    def decode_ranks(self, image: Tensor, ranks: list[int], among: Tensor | None = None) -> dict[int, Tensor]:
        """For each M of `ranks`, the reconstructions (B, 3, H, W) where each token takes its M-th nearest code, of
        those with the indices `among` (n,)."""
        indices = self.quantizer.ranked(self.latents(image), ranks, among)  # (B, h, w, R)
        return {
            rank: self.decode(self.quantizer.lookup(ids)) for rank, ids in zip(ranks, indices.unbind(-1), strict=True)
        }

    def predict(self, quantized: Tensor) -> Tensor:
        return self.decoder(self.post_quant(quantized)).float()  # losses and metrics are float32 in every precision

    def to_image(self, prediction: Tensor) -> Tensor:
        return logit_laplace_mean(prediction) if self.config.loss.logit_laplace else prediction

    def forward(self, image: Tensor) -> TokenizerOutput:
        codes = self.encode(image)
        prediction = self.predict(codes.quantized)
        return TokenizerOutput(self.to_image(prediction), prediction, codes.indices, codes.loss)

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> what is left of them after encoding and decoding, same shape and range."""
        return self(image).reconstruction.clamp(-1, 1)
