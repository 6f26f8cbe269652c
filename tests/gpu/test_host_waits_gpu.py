"""A training step makes the host wait for nothing: torch raises an error where it would."""

from pathlib import Path

import pytest
import torch
from conftest import TinyExperiment
from gpu_runs import DEVICE, QUIET, NoWaits, fit, known, on_gpu
from vim_cases import tiny_vim

from experiments.pipeline.training import train

LOSS = "{l1: 1, l2: 1, perceptual: 0.1, perceptual_network: efficientnet-lite0, adversarial: 0.1, r1: 1}"
BATCH = 64 if DEVICE.type == "cuda" else 8  # from 3,072 tokens on torch adds up the codes' gradients in another way
SIZES = (f"data.batch_size={BATCH}", f"data.train_size={15 * BATCH}")
COMMON = ("model.codebook_size=16384", f"model.loss={LOSS}", *SIZES, "data.flip=true")
CELLS = {
    "vq": ("vqgan",),
    "stem": ("vqgan", "model.backbone.stem=2"),
    "fc": ("vqgan_fc",),
    "ema": ("vqgan_ema",),
    "reseeded ema": ("vqgan_ema", "model.quantizer.dead_code_threshold=0.1"),
    "placed": ("vqgan", "model.quantizer.init=latents", "model.quantizer.place_at=2"),
    "lc": ("vqgan_lc",),
    "matched": ("vqgan_lc", "model.quantizer.match_at=2"),
    "vit": ("vit_vqgan",),
    "graphs": ("vqgan_lc", "trainer.compile=graphs"),
}


@pytest.mark.skipif(DEVICE.type != "cuda", reason="a CPU waits for nothing")
def test_a_wait_is_an_error() -> None:
    value = torch.ones((), device=DEVICE)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            value.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


BF16 = [("lc", "bf16-mixed"), ("vit", "bf16-mixed"), ("graphs", "bf16-mixed")]  # one of each kind is enough


@pytest.mark.parametrize(("cell", "precision"), [*((cell, "32-true") for cell in CELLS), *BF16])
def test_a_step_of_a_tokenizer(tiny: TinyExperiment, tmp_path: Path, cell: str, precision: str) -> None:
    """With every term there is, batches and the trainer's loop included."""
    name, *options = CELLS[cell]
    steps = ("trainer.max_steps=14", f"trainer.precision={precision}")  # the last one counts the codes of the epoch
    watch = NoWaits()
    fit(known(tiny, name, *COMMON, *options, *steps, *QUIET, *on_gpu()), tmp_path, watch)
    assert watch.is_over


def test_a_step_of_a_transformer(tiny: TinyExperiment, tmp_path: Path) -> None:
    options = ["model.generation.num_samples=0", "model.label_dropout=0.1", "model.keep_tokens=0.8"]
    sizes = ["data.train_size=64", "trainer.max_steps=13", *QUIET]
    experiment = tiny_vim(tiny, *options, *sizes, upstream=on_gpu())
    watch = NoWaits()
    train(experiment, "vim", tmp_path / "run", callbacks=[watch])
    assert watch.is_over
