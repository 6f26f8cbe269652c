"""From images to tokens or latents by a frozen tokenizer, once (`experiments.tokenize`) or at every step
(`EncodedImages`).

Shapes: B images a batch, T = h * w tokens, d dimensions of a latent.
"""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor

from datamodules import ImageDataModule
from datamodules.base import Batch
from experiments.config.compose import parse
from lightning_modules.archives import weights_hash
from lightning_modules.frozen import freeze
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.tokenizer import Tokenizer


def tokenizer_digest(path: str | Path) -> str:
    """Names a checkpoint's tokenizer: its experiment's digest and a hash of its weights, the discriminator left out."""
    checkpoint = load_checkpoint(path)
    return f"{parse(checkpoint['experiment'], str(path)).digest()}-{weights_hash(checkpoint['state_dict'])}"


@torch.no_grad()  # not inference_mode: an embedding could not save such ids for its backward pass
def encode_batch(tokenizer: Tokenizer, batch: Batch, precision: str = "32-true", kind: str = "tokens") -> Batch:
    """{"image": (B, 3, H, W) in [-1, 1], ...} to {"tokens": (B, T) int64 in raster order, ...}, or to {"latents":
    (B, d, h, w) float32, ...}, the encoder's output before quantization.

    The tokenizer is frozen; `precision` is its encoder's, as `trainer.precision`: the code search is float32 in all.
    """
    assert not tokenizer.training, "freeze(tokenizer) first"
    image = batch["image"]
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with torch.autocast(image.device.type, dtype, enabled=precision != "32-true"):
        if kind == "latents":
            encoded = tokenizer.latents(image).movedim(-1, 1).float()  # (B, d, h, w)
        else:
            encoded = tokenizer.encode(image).indices.flatten(1)  # (B, T)
    return {kind: encoded} | {key: value for key, value in batch.items() if key != "image"}


class EncodedImages(LightningDataModule):
    """The papers' way: images that are set up, flips and crops included, become tokens or latents on the device at
    every step.

    Serves what `TokensDataModule` or `LatentsDataModule` serves, so that a module need not know which of them it has.
    The tokenizer, frozen here, is no part of the trained module: no optimizer, checkpoint or `train()` reaches it.
    """

    def __init__(self, images: ImageDataModule, tokenizer: Tokenizer, precision: str = "32-true", kind: str = "tokens"):
        super().__init__()
        self.images, self.tokenizer, self.precision, self.kind = images, freeze(tokenizer), precision, kind

    def train_dataloader(self) -> Any:
        self.images.trainer = self.trainer  # its number of devices and rank
        return self.images.train_dataloader()

    def val_dataloader(self) -> Any:
        self.images.trainer = self.trainer
        return self.images.val_dataloader()

    def on_after_batch_transfer(self, batch: dict[str, Tensor], dataloader_idx: int) -> Batch:
        if self.tokenizer.device != batch["image"].device:
            self.tokenizer.to(batch["image"].device)
        return encode_batch(self.tokenizer, batch, self.precision, self.kind)
