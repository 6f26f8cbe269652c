"""VIM's training step as it is, in bf16 with cheap dropout, against float32 with torch's own dropout and attention.

    python -m benchmarks.vim_step         # 8 blocks of width 256, 128 images of 64 tokens, vocabulary 8,192

Both sides are the whole step of `vim_cifar10.yaml` (forward, backward, clipping, AdamW) with the recipe's dropout,
timed in turn in one process, with the memory each takes beyond its weights. The last line is `vim_step RATIO`: how
many times faster the step is.
"""

import argparse
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.timing import Side, paired, peak_memory, report
from experiments.config.compose import load_experiment
from experiments.pipeline.build import build_model
from lightning_modules.base import Setting
from lightning_modules.networks import dropout, gpt
from lightning_modules.vim import VIM

RECIPE = "experiments/vim_cifar10.yaml"
NOW = "trainer.precision=bf16-mixed"
BEFORE = "trainer.precision=32-true"
VOCABULARY, GRID, CLASSES = 8192, (8, 8), 10


def torch_attention(q: Tensor, k: Tensor, v: Tensor, p: float, filled: Tensor | None) -> Tensor:
    assert filled is None, "as in training"
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)


def training_step(*overrides: str) -> Callable[[], None]:
    """A function that makes one optimizer step of the recipe on random tokens."""
    experiment = load_experiment(RECIPE, overrides)
    torch.manual_seed(0)
    module = build_model(experiment, Setting(32, CLASSES, VOCABULARY, GRID)).train()
    assert isinstance(module, VIM)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    module.trainer = L.Trainer(accelerator="cpu", max_steps=10**9, **quiet)
    module.trainer.fit_loop.max_batches = 10**9
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    optimizer, clip = module.configure_optimizers()["optimizer"], experiment.model.optimizer.gradient_clip
    size = experiment.data.batch_size
    batch = {"tokens": torch.randint(VOCABULARY, (size, GRID[0] * GRID[1])), "label": torch.randint(CLASSES, (size,))}
    mixed = experiment.trainer.precision == "bf16-mixed"

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext():
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()

    return run


def with_torch_dropout(run: Callable[[], None]) -> Callable[[], None]:
    """`run` with torch's own dropout and attention, the implementation of 0.1.0."""

    def before() -> None:
        with ExitStack() as stack:
            stack.enter_context(patch.object(dropout, "dropout", F.dropout))
            stack.enter_context(patch.object(gpt, "attend", torch_attention))
            run()

    return before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", default="8,8,256,1024", help="blocks, heads, width, width of the MLP")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--runs", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = f"model.gpt.dims=[{arguments.dims}]", f"data.batch_size={arguments.batch}"
    subject = training_step(*sizes, NOW)
    baseline = with_torch_dropout(training_step(*sizes, BEFORE))
    seconds = paired(subject, baseline, arguments.runs)
    report(
        "vim_step",
        Side("bf16, cheap dropout", seconds[0], peak_memory(subject)),
        Side("float32, torch's dropout", seconds[1], peak_memory(baseline)),
    )


if __name__ == "__main__":
    main()
