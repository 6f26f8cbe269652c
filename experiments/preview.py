"""What a recipe is and costs, before any of it is run: sizes, multiply-accumulates, memory, hours, beside the paper's.

    python -m experiments.preview experiments/vqgan_lc_imagenet.yaml --devices 32 --tflops 8
    python -m experiments.preview experiments/vit_vqgan_imagenet.yaml model.backbone.decoder_size=large
    python -m experiments.preview experiments/vim_imagenet.yaml --devices 128 --tflops 100

Counted on the meta device: needs no data, weights or GPU, and takes seconds at any size. MACs are half of the
operations; hours are 2 x MACs of all steps / (devices x TFLOP/s), a backward pass counting as two forward
passes. Sustained TFLOP/s are well below the peak: an A100 in bf16 may reach 100 of 312.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_recipe("preview", __doc__)
    parser.add_argument("--devices", type=int, help="that share data.batch_size (default: runtime.devices, else here)")
    speed = "10^12 operations a second that a device sustains (default: 8, half of a V100's fp32 peak)"
    parser.add_argument("--tflops", type=float, default=8.0, help=speed)
    given = parser.parse_intermixed_args()
    from rich.console import Console

    from experiments.config.compose import as_yaml, load_experiment
    from experiments.costs.report import preview
    from experiments.runtime.ranks import num_devices

    with user_errors():
        experiment = load_experiment(given.file, given.overrides)
        if given.print_config:
            print(as_yaml(experiment), end="")
            return
        devices = num_devices(experiment.runtime) if given.devices is None else given.devices
        Console().print(preview(experiment, Path(given.file).stem, devices, given.tflops))


if __name__ == "__main__":
    main()
