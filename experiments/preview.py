"""What a recipe is and costs, before any of it is run: sizes, multiply-accumulates, memory, hours, beside the paper's.

    python -m experiments.preview experiments/vqgan_lc_imagenet.yaml --devices 32 --tflops 8
    python -m experiments.preview experiments/vit_vqgan_imagenet.yaml model.backbone.decoder_size=large

Counted on the meta device: needs no data, no weights and no GPU, and takes seconds at any size.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from experiments.config import Downstream, Experiment, load_experiment
from experiments.cost import Cost, count_cost, memory_bytes, training_hours
from experiments.errors import user_errors
from experiments.health import memory_limit
from experiments.paper_counts import TOLERANCE, PaperCount, paper_counts
from experiments.summary import num_devices

TFLOPS = 8.0  # about half of a V100's fp32 peak of 15.7


def preview(experiment: Experiment, name: str, devices: int, tflops: float) -> Table:
    """The table that the command prints. Raises ValueError when the global batch does not divide over the devices."""
    batch = experiment.data.batch_size
    if devices < 1 or batch % devices:
        raise ValueError(
            f"--devices {devices}: data.batch_size={batch} is the global batch and must divide evenly over the devices"
        )
    if tflops <= 0:
        raise ValueError(f"--tflops {tflops} must be above 0")
    cost, model, config = count_cost(experiment), experiment.model, experiment.trainer
    grid, size = round(cost.tokens**0.5), experiment.data.image_size
    table = Table(title=name, show_header=False, title_justify="left")
    rows = [
        ("model", f"{model.name}: {model.backbone.name} backbone, {model.quantizer.name} quantizer"),
        ("data", f"{experiment.data.name}, {size} x {size} pixels, batch {batch:,}: {batch // devices:,} a device"),
        ("tokens per image", f"{cost.tokens:,} ({grid} x {grid})"),
        ("codebook", f"{model.codebook_size:,} codes of {model.code_dim} dimensions"),
        *parameter_rows(cost),
        *mac_rows(cost),
        *((count.source, against_paper(count, cost)) for count in paper_counts(experiment)),
        ("memory a device", memory_row(memory_bytes(experiment, devices), devices)),
        ("training", training_row(experiment, cost, devices, tflops)),
    ]
    if config.precision != "32-true":
        rows.append(("precision", f"{config.precision}; memory is counted in fp32, so an upper bound"))
    for row in rows:
        table.add_row(*row)
    return table


def parameter_rows(cost: Cost) -> list[tuple[str, str]]:
    rows = [(part, millions(number)) for part, number in cost.parameters.items() if number]
    return [("trained parameters", ""), *indented(rows), ("  generator", millions(cost.totals["generator parameters"]))]


def mac_rows(cost: Cost) -> list[tuple[str, str]]:
    """The search stands apart: papers leave it out."""
    names = {"projector": "projector, once a batch", "perceptual": "perceptual loss, two images"}
    rows = [(names.get(part, part), billions(number)) for part, number in cost.macs.items() if number]
    total = ("  reconstruction", f"{billions(cost.totals['generator MACs'])}: all above but the search and the losses")
    return [("MACs, one image forward", ""), *indented(rows), total]


def indented(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(f"  {head}", text) for head, text in rows]


def against_paper(count: PaperCount, cost: Cost) -> str:
    """ "generator MACs: paper 195.70 G, ours 196.17 G, +0.2 %", and the reason where they are far apart."""
    ours = cost.totals[count.quantity]
    shown = billions if count.quantity.endswith("MACs") else millions
    text = f"{count.quantity}: paper {shown(count.value)}, ours {shown(ours)}, {count.difference(ours):+.1%}"
    return f"{text}: {count.reason}" if abs(count.difference(ours)) > TOLERANCE else text


def memory_row(needed: int, devices: int) -> str:
    here, what = machine_memory()
    text = f"{needed / 2**30:.1f} GiB: weights, gradients, Adam, activations in fp32"
    if needed <= here:
        return text
    return (
        f"{text}\n[bold red]more than the {here / 2**30:.1f} GiB of {what}[/]: use more than {devices} device(s) "
        "of this kind (--devices), a smaller data.batch_size, or model.optimizer.accumulate"
    )


def machine_memory() -> tuple[int, str]:
    """Bytes of one device of this machine, and what it is."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return properties.total_memory, properties.name
    return memory_limit(), "this machine's memory"


def training_row(experiment: Experiment, cost: Cost, devices: int, tflops: float) -> str:
    hours = training_hours(experiment, cost, devices, tflops)
    return (
        f"about {hours:,.3g} h for {experiment.trainer.max_steps:,} steps on {devices} device(s) at {tflops:g} TFLOP/s "
        "sustained each; forward and backward of all networks, no loading, no communication, no validation"
    )


def millions(number: float) -> str:
    """Parameters: "71.76 M", and "4,360" where millions would be none."""
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,.0f}"


def billions(number: float) -> str:
    """MACs: "196.17 G" or "28.31 M"."""
    return f"{number / 1e9:,.2f} G" if number >= 1e8 else f"{number / 1e6:,.2f} M"


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
        if isinstance(experiment, Downstream):
            raise ValueError(
                f"{arguments.file}: only tokenizers can be previewed yet; here that is {experiment.recipe}, or below it"
            )
        devices = num_devices(experiment) if arguments.devices is None else arguments.devices
        Console().print(preview(experiment, Path(arguments.file).stem, devices, arguments.tflops))


if __name__ == "__main__":
    main()
