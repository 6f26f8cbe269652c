"""What a recipe is and costs before it is run: sizes, MACs, memory and hours, beside the counts of the paper."""

import torch
from rich.table import Table

from experiments.config.experiment import Experiment
from experiments.costs.counts import Cost, count_cost, memory_bytes, training_hours
from experiments.costs.papers import TOLERANCE, PaperCount, paper_counts
from experiments.runtime.health import memory_limit
from lightning_modules.checks import require


def preview(experiment: Experiment, name: str, devices: int, tflops: float) -> Table:
    """The table that the command prints. Raises ValueError where the experiment cannot run on that many devices."""
    batch = experiment.data.batch_size
    if devices < 1 or batch % devices:
        raise ValueError(f"--devices {devices}: data.batch_size={batch} is the global batch, to be divided evenly")
    require(tflops > 0, f"--tflops {tflops} must be above 0")
    cost = count_cost(experiment)
    if not cost.parameters:
        why = f"costs little beside what it stands on: {experiment.recipe}" if experiment.recipe else "tells no `parts`"
        raise ValueError(f"a {experiment.model.name} {why}")
    size, precision = experiment.data.image_size, experiment.trainer.precision
    table = Table(title=name, show_header=False, title_justify="left")
    share = f"batch {batch:,}: {batch // devices:,} a device"
    table.add_row("data", f"{experiment.data.name}, {size} x {size} pixels, {share}")
    for row in cost_rows(experiment, cost, devices, tflops):
        table.add_row(*row)
    if precision != "32-true":
        table.add_row("precision", f"{precision}; memory is counted in fp32, so an upper bound")
    return table


def cost_rows(experiment: Experiment, cost: Cost, devices: int, tflops: float) -> list[tuple[str, str]]:
    hours = training_hours(experiment, cost, devices, tflops)
    time = f"{hours:,.0f} h" if hours >= 10 else f"{60 * hours:,.1f} min"
    parameters = [*cost.parameters.items(), ("model", cost.totals["model parameters"])]
    names = {"projector": "projector, once a step", "perceptual": "perceptual loss, two images"}
    names["tokenizer"] = "tokenizer, at every step"
    return [
        *experiment.model.describe().items(),
        *token_rows(experiment, cost),
        *((("stands on", experiment.recipe),) if experiment.upstream else ()),
        ("trained parameters", ""),
        *((f"  {part}", millions(number)) for part, number in parameters if number),
        ("MACs, one image forward", ""),
        *((f"  {names.get(part, part)}", billions(number)) for part, number in cost.macs.items() if number),
        ("  model", f"{billions(cost.totals['model MACs'])}: all above but the search and the losses"),
        *((count.source, against_paper(count, cost.totals[count.quantity])) for count in paper_counts(experiment)),
        ("memory a device", memory_row(memory_bytes(experiment, devices), devices)),
        (
            "training",
            f"about {time} for {experiment.trainer.max_steps:,} steps on {devices} device(s) at {tflops:g} TFLOP/s "
            "sustained each; forward and backward of all networks, no loading, no communication, no validation",
        ),
    ]


def token_rows(experiment: Experiment, cost: Cost) -> list[tuple[str, str]]:
    if not cost.tokens:
        return []
    return [("tokens per image", f"{cost.tokens:,} of {experiment.tokenizer.codebook_size:,} codes")]


def against_paper(count: PaperCount, counted: int) -> str:
    """ "model MACs: paper 195.70 G, ours 196.17 G, +0.2 %", and the reason where they are far apart."""
    shown = billions if count.quantity.endswith("MACs") else millions
    text = f"{count.quantity}: paper {shown(count.value)}, ours {shown(counted)}, {count.difference(counted):+.1%}"
    return f"{text}: {count.reason}" if abs(count.difference(counted)) > TOLERANCE else text


def memory_row(needed: int, devices: int) -> str:
    here, what = machine_memory()
    text = f"{needed / 2**30:.1f} GiB: weights, gradients, the optimizer's moments, activations in fp32"
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


def millions(number: float) -> str:
    """Parameters: "71.76 M", and "4,360" where millions would be none."""
    return f"{number / 1e6:,.2f} M" if number >= 1e5 else f"{number:,.0f}"


def billions(number: float) -> str:
    """MACs: "196.17 G" or "28.31 M"."""
    return f"{number / 1e9:,.2f} G" if number >= 1e8 else f"{number / 1e6:,.2f} M"
