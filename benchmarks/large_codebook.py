"""A training step of VQGAN-LC at K = 100,000 against one at K = 1,024, same reduced recipe, in turn.

    python -m benchmarks.large_codebook

The last line, `large_codebook RATIO`, is the time at 100,000 codes over the time at 1,024.
"""

import argparse
import statistics

import torch

from benchmarks.steps import step, tokenizer
from benchmarks.timing import Side, paired, peak_memory, report

RECIPE = "experiments/vqgan_lc_cifar10.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    large, small = (step(*tokenizer(RECIPE, f"model.codebook_size={size}")) for size in (100_000, 1024))
    seconds = paired(large, small, arguments.runs, warmup=3)
    report(
        "small_vs_large_codebook",
        Side("K = 100,000", seconds[0], peak_memory(large)),
        Side("K = 1,024", seconds[1], peak_memory(small)),
    )
    print(f"large_codebook {statistics.median(seconds[0]) / statistics.median(seconds[1]):.3g}")


if __name__ == "__main__":
    main()
