"""The screen before training: what will be trained, how large it is, and about how long it takes."""

import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.config.experiment import Experiment
from experiments.costs.counts import memory_bytes
from experiments.runtime.ranks import device_of, num_devices


def print_summary(experiment: Experiment, module: Any, name: str, data_id: str, placing: str = "") -> None:
    """`placing`: where the images are and who makes batches of them, see `placing_text`."""
    data = experiment.data
    rows = experiment.model.describe()
    rows["data"] = f"{data_id}, {data.image_size} x {data.image_size} pixels, batch {data.batch_size}"
    if placing and not experiment.is_encoded_once:
        rows["images"] = placing
    if experiment.upstream is not None:
        rows["stands on"] = f"{experiment.recipe}, {experiment.upstream.digest()}"
    if (start := experiment.start_from).path:
        more = f", codebook grown from {start.grown_from:,} codes" if start.grown_from else ""
        rows["starts from"] = f"{start.path}, {start.parts or 'all parts'}{more}"
    rows |= module.start_screen() | slow_precision(experiment)
    if needed := memory_bytes(experiment, num_devices(experiment.runtime)):
        rows["peak memory, estimate"] = f"{needed / 2**30:.2f} GiB a device"
    rows |= expected_time(experiment, seconds_of_batch(experiment, module))
    table = Table(title=f"{name}  (seed {experiment.seed})", show_header=False, title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


def seconds_of_batch(experiment: Experiment, module: Any) -> float:
    """Of forward and backward on the CPU, roughly: a few images, twice, as the first time allocates, and scaled up.

    0 where something else trains, or the model has nothing to be timed.
    """
    if device_of(experiment.runtime).type != "cpu":
        return 0.0
    data, seconds = experiment.data, 0.0
    num_images = max(1, min(data.batch_size, 32 * 32 * 32 // data.image_size**2))
    for _ in range(2):
        start = time.perf_counter()
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast("cpu", torch.bfloat16, "bf16" in experiment.trainer.precision),
        ):
            loss = module.rough_loss(num_images)
        if loss is None:
            return 0.0
        weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        torch.autograd.grad(loss, weights, allow_unused=True)
        seconds = time.perf_counter() - start
    return seconds * data.batch_size / num_images


def expected_time(experiment: Experiment, seconds: float) -> dict[str, str]:
    """A row: minutes from `seconds` a global batch on the CPU; where these are 0, only the steps."""
    trainer, devices = experiment.trainer, num_devices(experiment.runtime)
    if not seconds:
        return {"steps": f"{trainer.max_steps:,}, {trainer.precision}"}
    minutes = seconds * experiment.model.optimizer.accumulate * trainer.max_steps / devices / 60
    return {"expected time, rough": f"{minutes:.1f} min for {trainer.max_steps:,} steps here, {trainer.precision}"}


def slow_precision(experiment: Experiment) -> dict[str, str]:
    """A row where bfloat16 has to be imitated: on x86 processors that have no instructions for it."""
    is_bf16, on_cpu = "bf16" in experiment.trainer.precision, device_of(experiment.runtime).type == "cpu"
    has: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # from torch 2.10 on
    if not (is_bf16 and on_cpu) or has.get("architecture") != "x86_64" or has["avx512_bf16"] or has["amx_bf16"]:
        return {}
    return {"precision": "bf16 without instructions for it on this CPU: trainer.precision=32-true may be faster"}
