"""Probing all blocks of a VIM in one pass against probing its last block alone, in turn.

    python -m benchmarks.probe            # 8 blocks of width 512, 16 images of 64 tokens, 10 classes

A training step of each: the frozen transformer's forward pass, as deep on both sides, the heads forward and backward,
the optimizer. The last line, `probe_all_blocks RATIO`, is the time of all blocks over the time of one; the aim is at
most 1.5. Probing n blocks one after the other, each no deeper than needed, would take about n / 2 times as long as one.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.timing import Side, paired, peak_memory, report
from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.optimizer import build_optimizer
from lightning_modules.probe_features import BlockFeatures

Batch = dict[str, torch.Tensor]


def training_step(gpt: GPT, blocks: list[int], classes: int, batch: Batch) -> Callable[[], None]:
    probe = LinearProbe(LinearProbeConfig(), BlockFeatures(gpt, blocks), classes)
    optimizer = build_optimizer(probe.parameters(), probe.config.optimizer)

    def step() -> None:
        optimizer.zero_grad()
        probe.losses(batch).sum().backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="a key of GPT_SIZES")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--grid", type=int, default=8, help="rows and columns of tokens")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--runs", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(size=arguments.size), 8192, (arguments.grid, arguments.grid))
    batch = {
        "tokens": torch.randint(gpt.vocab_size, (arguments.batch, gpt.num_tokens)),
        "label": torch.randint(arguments.classes, (arguments.batch,)),
    }
    every = training_step(gpt, [], arguments.classes, batch)
    last = training_step(gpt, [gpt.size.blocks], arguments.classes, batch)
    seconds = paired(every, last, arguments.runs)
    report(
        "probe_all_blocks",
        Side("the last block", seconds[1], peak_memory(last)),
        Side(f"all {gpt.size.blocks} blocks", seconds[0], peak_memory(every)),
    )


if __name__ == "__main__":
    main()
