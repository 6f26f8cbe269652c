"""What a recipe is and costs before it is run: sizes, MACs, memory and hours, beside the counts of the paper."""

import torch
from rich.table import Table

from experiments.config.experiment import Downstream, Experiment
from experiments.costs.papers import TOLERANCE, PaperCount, paper_counts, vim_paper_counts
from experiments.costs.tokenizer import Cost, count_cost, memory_bytes, training_hours
from experiments.costs.vim import count_vim, vim_hours, vim_memory_bytes
from experiments.runtime.health import memory_limit

TFLOPS = 8.0  # about half of a V100's fp32 peak of 15.7


def preview(experiment: Experiment, name: str, devices: int, tflops: float) -> Table:
    """The table that the command prints. Raises ValueError for what cannot be previewed, or run on so many devices."""
    batch, config = experiment.data.batch_size, experiment.trainer
    if devices < 1 or batch % devices:
        raise ValueError(
            f"--devices {devices}: data.batch_size={batch} is the global batch and must divide evenly over the devices"
        )
    if tflops <= 0:
        raise ValueError(f"--tflops {tflops} must be above 0")
    if isinstance(experiment, Downstream) and experiment.model.name != "vim":
        raise ValueError(f"a {experiment.model.name} costs little beside what it stands on: {experiment.recipe}")
    size = experiment.data.image_size
    described = (
        vim_rows(experiment, devices, tflops)
        if isinstance(experiment, Downstream)
        else tokenizer_rows(experiment, devices, tflops)
    )
    table = Table(title=name, show_header=False, title_justify="left")
    rows = [
        ("data", f"{experiment.data.name}, {size} x {size} pixels, batch {batch:,}: {batch // devices:,} a device"),
        *described,
    ]
    if config.precision != "32-true":
        rows.append(("precision", f"{config.precision}; memory is counted in fp32, so an upper bound"))
    for row in rows:
        table.add_row(*row)
    return table


def tokenizer_rows(experiment: Experiment, devices: int, tflops: float) -> list[tuple[str, str]]:
    cost, model = count_cost(experiment), experiment.model
    grid, hours = round(cost.tokens**0.5), training_hours(experiment, cost, devices, tflops)
    return [
        ("model", f"{model.name}: {model.backbone.name} backbone, {model.quantizer.name} quantizer"),
        ("tokens per image", f"{cost.tokens:,} ({grid} x {grid})"),
        ("codebook", f"{model.codebook_size:,} codes of {model.code_dim} dimensions"),
        *parameter_rows(cost, ("generator", cost.totals["generator parameters"])),
        *mac_rows(cost),
        ("  reconstruction", f"{billions(cost.totals['generator MACs'])}: all above but the search and the losses"),
        *((count.source, against_paper(count, cost.totals[count.quantity])) for count in paper_counts(experiment)),
        ("memory a device", memory_row(memory_bytes(experiment, devices), devices, "Adam")),
        ("training", training_row(experiment, hours, devices, tflops)),
    ]


def vim_rows(experiment: Downstream, devices: int, tflops: float) -> list[tuple[str, str]]:
    cost, model, gpt = count_vim(experiment), experiment.model, experiment.model.gpt.resolved()
    total, hours = sum(cost.parameters.values()), vim_hours(experiment, cost, devices, tflops)
    optimizer = f"{model.optimizer.name}'s moments"
    return [
        ("model", f"{model.name}: {gpt.blocks} blocks, {gpt.heads} heads, width {gpt.width:,}, MLP {gpt.mlp_width:,}"),
        ("tokens per image", f"{cost.tokens:,} of {experiment.upstream.model.codebook_size:,} codes"),
        ("tokenizer", experiment.recipe),
        *parameter_rows(cost, ("transformer", total)),
        *mac_rows(cost),
        *((count.source, against_paper(count, total)) for count in vim_paper_counts(experiment)),
        ("memory a device", memory_row(vim_memory_bytes(experiment, devices), devices, optimizer)),
        ("training", training_row(experiment, hours, devices, tflops)),
    ]


def parameter_rows(cost: Cost, total: tuple[str, int]) -> list[tuple[str, str]]:
    rows = [*cost.parameters.items(), total]
    return [("trained parameters", ""), *((f"  {part}", millions(number)) for part, number in rows if number)]


def mac_rows(cost: Cost) -> list[tuple[str, str]]:
    """The search stands apart: papers leave it out."""
    names = {"projector": "projector, once a batch", "perceptual": "perceptual loss, two images"}
    names["tokenizer"] = "tokenizer, which encodes at every step"
    rows = [(f"  {names.get(part, part)}", billions(number)) for part, number in cost.macs.items() if number]
    return [("MACs, one image forward", ""), *rows]


def against_paper(count: PaperCount, ours: int) -> str:
    """ "generator MACs: paper 195.70 G, ours 196.17 G, +0.2 %", and the reason where they are far apart."""
    shown = billions if count.quantity.endswith("MACs") else millions
    text = f"{count.quantity}: paper {shown(count.value)}, ours {shown(ours)}, {count.difference(ours):+.1%}"
    return f"{text}: {count.reason}" if abs(count.difference(ours)) > TOLERANCE else text


def memory_row(needed: int, devices: int, optimizer: str) -> str:
    here, what = machine_memory()
    text = f"{needed / 2**30:.1f} GiB: weights, gradients, {optimizer}, activations in fp32"
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


def training_row(experiment: Experiment, hours: float, devices: int, tflops: float) -> str:
    time = f"{hours:,.0f} h" if hours >= 10 else f"{60 * hours:,.1f} min"
    return (
        f"about {time} for {experiment.trainer.max_steps:,} steps on {devices} device(s) at {tflops:g} TFLOP/s "
        "sustained each; forward and backward of all networks, no loading, no communication, no validation"
    )


def millions(number: float) -> str:
    """Parameters: "71.76 M", and "4,360" where millions would be none."""
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,.0f}"


def billions(number: float) -> str:
    """MACs: "196.17 G" or "28.31 M"."""
    return f"{number / 1e9:,.2f} G" if number >= 1e8 else f"{number / 1e6:,.2f} M"
