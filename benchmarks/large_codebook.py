"""A training step of VQGAN-LC at K = 100,000 against one at K = 1,024, same CIFAR-10 recipe, in turn.

    python -m benchmarks.large_codebook

The last line, `large_codebook RATIO`, is the time at 100,000 codes over the time at 1,024.
"""

import argparse

import torch

from benchmarks.steps import GAME_ON, made, step
from benchmarks.timing import Side, in_turn, peak_memory, report
from experiments.config.compose import load_experiment

RECIPE = "experiments/vqgan_lc_cifar10.yaml"
SIZES = 1024, 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    changes = ([*GAME_ON, f"model.codebook_size={size}"] for size in SIZES)
    experiments = [load_experiment(RECIPE, change) for change in changes]
    steps = [step(*made(experiment), experiment.trainer.precision) for experiment in experiments]
    seconds = in_turn(steps, arguments.runs, warmup=3)
    sides = (Side(f"K = {size}", part, peak_memory(run)) for size, part, run in zip(SIZES, seconds, steps, strict=True))
    report("large_codebook", *sides)


if __name__ == "__main__":
    main()
