"""A stage-2 epoch from cached tokens, or latents, against one that encodes the same images at every step, in turn.

    python -m benchmarks.token_cache [CHECKPOINT]
    python -m benchmarks.token_cache --recipe experiments/vqgan_ema_imagenet.yaml --images 12 --batch-size 4 \
        --width 512 --blocks 8 --runs 2  # the encoder of 256 pixels, and the transformer of benchmarks.sampling
    python -m benchmarks.token_cache --kind latents  # and a training step of SiT

Same images, same order, same batches; on one side a data module reads from disk, on the other `EncodedImages` runs the
frozen tokenizer. Two consumers: one only reads the batch, one makes a training step of a causal transformer, or of SiT.
Without a checkpoint the tokenizer is the recipe's, untrained, on rendered shapes.

`token_cache_read RATIO` is what reading gains; the last line, `token_cache RATIO` or `latent_cache RATIO`, how many
times faster the training epoch is. That is 1 + encoder / training step, which depends on the sizes of the two models:
both are printed.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import Side, paired, report
from datamodules import LatentsDataModule, TokensConfig, TokensDataModule
from datamodules.base import Batch
from datamodules.views import ViewDataset
from experiments.config.compose import load_experiment
from experiments.pipeline.build import build_data, build_model, resolve_data, restore
from experiments.pipeline.encode import EncodedImages, tokenizer_digest
from experiments.pipeline.token_writer import make_job, write_encoded
from lightning_modules import flow
from lightning_modules.networks.dit import DiT, DiTConfig
from lightning_modules.quantizers import LargeCodebook

OFFLINE = "{extractor: efficientnet-lite0, lpips: none}"  # no weights to download

Consumer = Callable[[Batch], object]


class CausalTransformer(nn.Module):
    """Tokens (B, T) to logits (B, T, K) of each token given those before it; a stand-in for VIM."""

    def __init__(self, codebook_size: int, length: int, width: int, blocks: int):
        super().__init__()
        self.tokens = nn.Embedding(codebook_size + 1, width)  # the last is the start
        self.positions = nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, blocks, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, codebook_size)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, tokens: Tensor) -> Tensor:
        x = F.pad(tokens[:, :-1], (1, 0), value=self.tokens.num_embeddings - 1)  # (B, T)
        return self.head(self.blocks(self.tokens(x) + self.positions, self.mask, is_causal=True))


def reading(data: TokensDataModule, width: int, blocks: int) -> Consumer:
    return lambda batch: batch[data.meta.kind].sum() + batch["label"].sum()


def training(data: TokensDataModule, width: int, blocks: int) -> Consumer:
    """A training step as a function of a batch. Another stage-2 model is timed by giving its step here."""
    torch.manual_seed(0)
    model = CausalTransformer(data.codebook_size, data.grid_size[0] * data.grid_size[1], width, blocks)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["tokens"].flatten()).backward()
        optimizer.step()

    return step


def flow_training(data: TokensDataModule, width: int, blocks: int) -> Consumer:
    """A training step of SiT with patches of 2 x 2 latents."""
    torch.manual_seed(0)
    config = DiTConfig(dims=[blocks, width, max(1, width // 64)], drop_sigma=True)
    model = DiT(config, data.meta.code_dim, data.grid_size, data.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        latents = batch["latents"]
        times, noise = torch.rand(len(latents)), torch.randn_like(latents)
        flow.loss(model, latents, batch["label"], times, noise).mean().backward()
        optimizer.step()

    return step


CONSUMERS = {
    "tokens": {"token_cache_read": reading, "token_cache": training},
    "latents": {"latent_cache_read": reading, "latent_cache": flow_training},
}


def both_sources(arguments: argparse.Namespace, folder: Path) -> tuple[TokensDataModule, EncodedImages]:
    """The same images as cached tokens or latents in `folder`, and with the tokenizer that made them."""
    overrides = {"runtime": {"accelerator": "cpu", "data_dir": arguments.data_dir}}
    torch.manual_seed(0)
    if arguments.checkpoint:
        experiment, tokenizer = restore(arguments.checkpoint, overrides)
        digest = tokenizer_digest(arguments.checkpoint)
    else:
        only_encoder = ("model.loss={perceptual: 0, adversarial: 0}", f"model.metrics={OFFLINE}")
        experiment = resolve_data(load_experiment(arguments.recipe, only_encoder), "shapes")
        tokenizer, digest = build_model(experiment), "untrained"
        if isinstance(tokenizer.quantizer, LargeCodebook):
            tokenizer.quantizer.fill(torch.randn_like(tokenizer.quantizer.table))
    size, batch_size = arguments.images, arguments.batch_size
    config = replace(experiment.data, train_size=size, val_size=10, batch_size=batch_size, flip=False)
    data = build_data(replace(experiment, data=config))
    assert data.train_set is not None and data.val_set is not None
    sources = {"train": ViewDataset(data.train_set, ["plain"]), "val": ViewDataset(data.val_set, ["plain"])}
    kind, experiment = arguments.kind, replace(experiment, data=config)
    stored = "float32" if kind == "latents" else ""
    write_encoded(make_job(experiment, tokenizer, digest, data, sources, batch_size, stored), folder)
    cls = LatentsDataModule if kind == "latents" else TokensDataModule
    cached = cls(TokensConfig(path=str(folder), batch_size=batch_size))
    cached.setup()
    return cached, EncodedImages(data, tokenizer, experiment.trainer.precision, kind)


def cached_epoch(data: TokensDataModule, consume: Consumer) -> Callable[[], None]:
    """Calls are epochs 0, 1, 2, ..., each in its own order."""
    loader, epochs = data.train_dataloader(), count()

    def epoch() -> None:
        loader.sampler.set_epoch(next(epochs))  # type: ignore[attr-defined]
        for batch in loader:
            consume(batch)

    return epoch


def encoded_epoch(data: EncodedImages, consume: Consumer) -> Callable[[], None]:
    loader, epochs = data.train_dataloader(), count()

    def epoch() -> None:
        loader.sampler.set_epoch(next(epochs))
        for batch in loader:
            consume(data.on_after_batch_transfer(batch, 0))

    return epoch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a trained tokenizer (default: the recipe's, untrained)")
    parser.add_argument("--kind", choices=CONSUMERS, default="tokens", help="what is cached")
    parser.add_argument("--recipe", default="experiments/vit_vqgan_cifar10.yaml")
    parser.add_argument("--data-dir", default="data", help="of the checkpoint's images")
    parser.add_argument("--images", type=int, default=1024, help="images of an epoch")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--width", type=int, default=128, help="of the transformer, a multiple of 32")
    parser.add_argument("--blocks", type=int, default=4, help="of the transformer")
    parser.add_argument("--runs", type=int, default=5, help="timed epochs of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        cached, encoded = both_sources(arguments, Path(folder))
        encoder = sum(p.numel() for p in encoded.tokenizer.encoder.parameters())
        print(
            f"{arguments.images:,} images of {cached.data_id} in batches of {arguments.batch_size}, encoder of "
            f"{encoder / 1e6:.2f} M parameters, "
            f"{cached.meta.shape('train')} {arguments.kind}, transformer of {arguments.blocks} blocks of "
            f"width {arguments.width}, {arguments.threads} threads"
        )
        for name, consumer in CONSUMERS[arguments.kind].items():
            subject, baseline = (consumer(cached, arguments.width, arguments.blocks) for _ in range(2))
            seconds = paired(cached_epoch(cached, subject), encoded_epoch(encoded, baseline), arguments.runs)
            report(name, Side(f"cached {arguments.kind}", seconds[0]), Side("encoding at each step", seconds[1]))


if __name__ == "__main__":
    main()
