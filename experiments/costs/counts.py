"""What an experiment costs, counted without data, weights or a step: parameters, multiply-accumulates, memory, hours.

The networks are a model's `parts`, built on the meta device, where a tensor has a shape and no values.

Shapes: N tokens an image.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.experiment import MODULES, Experiment
from lightning_modules.base import Setting, count
from lightning_modules.networks import BACKBONES
from lightning_modules.parts import Part
from lightning_modules.tokenizer_config import TokenizerConfig

NUM_CLASSES = {"image_folder": 1000}  # where only the files know: ImageNet's; 10 elsewhere
# Numbers held for a weight: itself, its gradient, Adam's two moments; Adafactor's are factorised to nearly none.
NUMBERS_A_WEIGHT = {"adamw": 4, "adafactor": 2}


@dataclass(frozen=True)
class Cost:
    """Counts by part, made by `count_cost`."""

    tokens: int  # N; 0 without a tokenizer
    parameters: dict[str, int]  # trained
    macs: dict[str, int]  # multiply-accumulates of a forward pass of one image
    totals: dict[str, int]  # the sums that papers print; MACs without the search and the losses, as in B-Table 8


def setting_of(experiment: Experiment) -> Setting:
    """The numbers that the experiment's module is built of, told from the configuration alone."""
    tokenizer, size = experiment.bottom.model, experiment.data.image_size
    classes = NUM_CLASSES.get(experiment.data.name, 10)
    if not isinstance(tokenizer, TokenizerConfig):
        return Setting(size, classes)
    with torch.device("meta"):
        grid = BACKBONES[tokenizer.backbone.name][0](tokenizer.backbone, size).grid
    return Setting(size, classes, tokenizer.codebook_size, grid, code_dim=tokenizer.code_dim)


def parts_of(experiment: Experiment) -> list[Part]:
    with torch.device("meta"):
        return MODULES[experiment.model.name][0].parts(experiment.model, setting_of(experiment))


def count_cost(experiment: Experiment, attention: bool = True) -> Cost:
    """Counts each part of the experiment's networks; "tokenizer" is what it adds at every step.

    `attention=False` leaves out the two products inside attention, as counters do that look at layers alone.
    """
    parts, rows = parts_of(experiment), math.prod(setting_of(experiment).grid_size)
    parameters = {part.name: count(part.holder) for part in parts}
    macs = {part.name: macs_of(part, attention) for part in parts}
    totals = {f"{name} parameters": number for name, number in parameters.items()}
    totals["model parameters"] = sum(parameters[part.name] for part in parts if not part.is_apart)
    totals["model MACs"] = sum(macs[part.name] for part in parts if part.is_counted)
    model = experiment.model
    encodes = model.inputs != "images" and model.encode_on_the_fly
    if encodes or model.decodes:
        below = parts_of(experiment.bottom)
        used = [part for part in below if (encodes and part.encodes) or (model.decodes and part.decodes)]
        macs["tokenizer"] = sum(macs_of(part, attention) for part in used)
    return Cost(rows, parameters, macs, totals)


def macs_of(part: Part, attention: bool = True) -> int:
    if part.macs is not None or part.network is None:
        return part.macs or 0
    return count_macs(part.network, *part.inputs, attention=attention)


@torch.no_grad()
def count_macs(module: nn.Module, *inputs: Tensor, attention: bool = True) -> int:
    """Multiply-accumulates of the convolutions and matrix products in module(*inputs); see `count_cost`."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    operations = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in operations.items() if attention or "bmm" not in str(op)) // 2


# ---- memory


def memory_bytes(experiment: Experiment, devices: int = 1) -> int:
    """Estimate for one device: weights, gradients and the optimizer's moments in fp32, frozen tensors, activations of
    the device's share of the batch; 0 where the model tells no parts.

    Activations are counted in fp32, an upper bound with bf16-mixed. Not counted: the allocator's slack, buffers of
    distributed training and of convolution algorithms, a tokenizer that encodes on the fly.
    """
    parts, images = parts_of(experiment), math.ceil(experiment.data.batch_size / devices)
    numbers = NUMBERS_A_WEIGHT[getattr(experiment.model.optimizer, "name", "adamw")]
    weights = sum(4 * numbers * count(part.holder) + frozen_bytes(part.holder) for part in parts)
    chunks = sum(min(part.kept_limit, images * part.kept_bytes) for part in parts)
    return weights + chunks + images * activation_bytes(parts)


def frozen_bytes(module: nn.Module | None) -> int:
    """Of what is not trained."""
    if module is None:
        return 0
    tensors = [*module.buffers(), *(p for p in module.parameters() if not p.requires_grad)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def activation_bytes(parts: list[Part]) -> int:
    """Bytes that one image keeps for the backward pass, in the phase of a step in which they are most."""
    phases: dict[str, int] = {}
    for part in parts:
        if part.network is None or not part.kept:
            continue
        network, inputs = faked(part.network, part.inputs)
        for phase, times in part.kept.items():
            if is_frozen := phase == part.frozen_in:  # gradients only pass through to the inputs
                network.requires_grad_(False)
            given = (x.detach().requires_grad_() for x in inputs) if is_frozen else inputs
            phases[phase] = phases.get(phase, 0) + times * saved_bytes(network, *given, holder=part.holder)
            if is_frozen:
                network.requires_grad_(True)
    return max(phases.values(), default=0)


def faked(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """From the meta device as fake tensors of a CPU, whose attention, unlike meta's and like a GPU's, never keeps an
    N x N matrix. Frozen ones, which may share their weights, stay where they are."""
    if not inputs[0].is_meta or not count(network):
        return network, inputs
    with FakeTensorMode(allow_non_fake_inputs=True):
        fakes = tuple(torch.empty_like(x, device="cpu").requires_grad_(x.requires_grad) for x in inputs)
        return network.to_empty(device="cpu"), fakes


def saved_bytes(module: nn.Module, *inputs: Tensor, holder: nn.Module | None = None) -> int:
    """Bytes of the tensors that autograd saves in module(*inputs), each storage once; weights, which `holder` has if
    the module does not show them, are left out."""
    weights = {p.untyped_storage()._cdata for owner in (module, holder or module) for p in owner.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:  # a linear layer saves its weight as a view
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
    del output
    return sum(kept.values())


# ---- time


def training_macs(experiment: Experiment, cost: Cost, devices: int = 1) -> float:
    """Multiply-accumulates of the whole run. Not counted: R1, the adaptive weight, the optimizer, validation."""
    steps, batch, total = experiment.trainer.max_steps, experiment.data.batch_size, 0.0
    for part in parts_of(experiment):
        passes = sum(number * max(0, steps - start) for number, start in part.passes)
        total += passes * (devices if part.once_a_step else batch) * cost.macs[part.name]
    total += steps * batch * cost.macs.get("tokenizer", 0)
    return total * experiment.model.optimizer.accumulate


def training_hours(experiment: Experiment, cost: Cost, devices: int, tflops: float) -> float:
    """Hours at `tflops` sustained 10^12 floating-point operations a second a device; a MAC is two operations."""
    return 2 * training_macs(experiment, cost, devices) / (tflops * 1e12 * devices) / 3600
