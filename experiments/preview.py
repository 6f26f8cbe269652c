"""What a recipe is and costs, before any of it is run: sizes, multiply-accumulates, memory, hours, beside the paper's.

    python -m experiments.preview experiments/vqgan_lc_imagenet.yaml --devices 32 --tflops 8
    python -m experiments.preview experiments/vit_vqgan_imagenet.yaml model.backbone.decoder_size=large
    python -m experiments.preview experiments/vim_imagenet.yaml --devices 128 --tflops 100

Counted on the meta device: needs no data, no weights and no GPU, and takes seconds at any size.
"""

import argparse
from pathlib import Path

from rich.console import Console

from experiments.config.compose import load_experiment
from experiments.costs.report import TFLOPS, preview
from experiments.runtime.errors import user_errors
from experiments.runtime.ranks import num_devices


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.preview",
        description="Print what a recipe is and costs, without data, weights or training: parameters and "
        "multiply-accumulates (MACs, half of the floating-point operations) of each network beside the paper's counts, "
        "memory a device, hours.",
        epilog="Hours are 2 x MACs of all steps / (devices x TFLOP/s), a backward pass counting as two forward "
        "passes. Sustained TFLOP/s are well below the peak: an A100 in bf16 may reach 100 of 312.",
    )
    parser.add_argument("file", help="recipe, for example experiments/vqgan_lc_imagenet.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the recipe")
    parser.add_argument("--devices", type=int, help="that share data.batch_size (default: runtime.devices, else here)")
    parser.add_argument(
        "--tflops",
        type=float,
        default=TFLOPS,
        help=f"10^12 operations a second that a device sustains (default: {TFLOPS:g}, half of a V100's fp32 peak)",
    )
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        experiment = load_experiment(arguments.file, arguments.overrides)
        devices = num_devices(experiment.runtime) if arguments.devices is None else arguments.devices
        Console().print(preview(experiment, Path(arguments.file).stem, devices, arguments.tflops))


if __name__ == "__main__":
    main()
