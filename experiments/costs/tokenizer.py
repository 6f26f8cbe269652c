"""What an experiment costs, counted without data, weights or a step: parameters, multiply-accumulates, memory, hours.

The networks are built on the meta device, where a tensor has a shape and no values.

Letters: N tokens an image, K codes of d dimensions, C features of a frozen table.
"""

import math
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from experiments.config.experiment import Experiment
from lightning_modules.losses import build_perceptual
from lightning_modules.losses.perceptual import PerceptualLoss
from lightning_modules.networks import BACKBONES, build_discriminator
from lightning_modules.quantizers import QUANTIZERS, LargeCodebook

Networks = dict[str, Any]  # name in Tokenizer -> module


@dataclass(frozen=True)
class Cost:
    """Counts by part, made by `count_cost`."""

    tokens: int  # N
    parameters: dict[str, int]  # trained
    macs: dict[str, int]  # multiply-accumulates of a forward pass of one image

    @property
    def totals(self) -> dict[str, int]:
        """The sums that papers print. The generator is everything but the discriminator; its MACs are those of
        reconstructing one image without the search for the nearest codes, as in B-Table 8."""
        totals = {f"{part} parameters": number for part, number in self.parameters.items()}
        totals["generator parameters"] = sum(self.parameters.values()) - self.parameters["discriminator"]
        totals["generator MACs"] = sum(self.macs[part] for part in ("encoder", "decoder", "projector"))
        return totals


def count_cost(experiment: Experiment, attention: bool = True) -> Cost:
    """Counts each part of the experiment's networks.

    The linear maps to and from the codes are counted with their neighbour's MACs. The projector of a large codebook
    maps all K entries once a batch, here of one image; the search is N * K * d; "perceptual" is of a pair of images.
    `attention=False` leaves out the two products inside attention, as counters do that look at layers alone.
    """
    model, parts, image = experiment.model, networks(experiment), partial(blank_image, experiment)
    macs = partial(count_macs, attention=attention)
    encoder, decoder, quantizer = parts["encoder"], parts["decoder"], parts["quantizer"]
    discriminator, perceptual = parts.get("discriminator"), perceptual_network(experiment)
    tokens, maps = encoder.grid_size**2, nn.ModuleList([parts["pre_quant"], parts["post_quant"]])
    projector = quantizer.projector if isinstance(quantizer, LargeCodebook) else None
    return Cost(
        tokens=tokens,
        parameters={
            "encoder": count(encoder),
            "decoder": count(decoder),
            "maps to and from codes": count(maps),
            "codebook": count(quantizer) - count(projector),
            "projector": count(projector),
            "discriminator": count(discriminator),
        },
        macs={
            "encoder": macs(nn.Sequential(encoder, parts["pre_quant"]), image(encoder)),
            "decoder": macs(nn.Sequential(parts["post_quant"], decoder), latents(experiment, parts)),
            "projector": 0 if projector is None else macs(projector, quantizer.table),
            "search": tokens * model.codebook_size * model.code_dim,
            "perceptual": 0 if perceptual is None else macs(perceptual, *2 * [image(perceptual)]),
            "discriminator": 0 if discriminator is None else macs(discriminator, image(discriminator)),
        },
    )


def count(module: nn.Module | None) -> int:
    """Trained parameters."""
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)


@torch.no_grad()
def count_macs(module: nn.Module, *inputs: Tensor, attention: bool = True) -> int:
    """Multiply-accumulates of the convolutions and matrix products in module(*inputs); see `count_cost`."""
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    operations = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in operations.items() if attention or "bmm" not in str(op)) // 2


def networks(experiment: Experiment, device: str = "meta") -> Networks:
    """The networks that `Tokenizer` trains, by their names there; no losses or metrics, which need files."""
    config, size = experiment.model, experiment.data.image_size
    encoder, decoder = BACKBONES[config.backbone.name][:2]
    quantizer = QUANTIZERS[config.quantizer.name][0]
    with torch.device(device):
        parts: Networks = {
            "encoder": encoder(config.backbone, size),
            "decoder": decoder(config.backbone, size, 6 if config.loss.logit_laplace else 3),
            "quantizer": quantizer(config.quantizer, config.codebook_size, config.code_dim),
        }
        parts["pre_quant"] = nn.Linear(parts["encoder"].width, config.code_dim)
        parts["post_quant"] = nn.Linear(config.code_dim, parts["decoder"].width)
        if config.loss.adversarial:
            parts["discriminator"] = build_discriminator(config.discriminator, size)
    return parts


def latents(experiment: Experiment, parts: Networks) -> Tensor:
    """Zeros (1, h, w, d) where the networks are: what the quantizer gives for one image."""
    grid = parts["decoder"].grid_size
    return torch.zeros(1, grid, grid, experiment.model.code_dim, device=parts["post_quant"].weight.device)


def perceptual_network(experiment: Experiment) -> PerceptualLoss | None:
    """The perceptual loss without weights from a hub: LPIPS on the meta device, EfficientNet-Lite0 as it is (small)."""
    loss = experiment.model.loss
    name = loss.perceptual_network
    if not loss.perceptual or name == "none":
        return None
    on_meta = torch.device("meta") if name.startswith("lpips") else nullcontext()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), on_meta:
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")
        network = build_perceptual(name, experiment.data.image_size, pretrained=False)
    return network.to("meta") if name.startswith("lpips") else network  # not all of lpips heeds torch.device


def blank_image(experiment: Experiment, module: nn.Module) -> Tensor:
    """One image (1, 3, H, W) of zeros on the module's device."""
    size = experiment.data.image_size
    holder = module.network if isinstance(module, PerceptualLoss) else module
    return torch.zeros(1, 3, size, size, device=next(holder.parameters()).device)


# ---- memory


def memory_bytes(experiment: Experiment, devices: int = 1) -> int:
    """Estimate for one device: weights, gradients and two Adam moments in fp32, the quantizer's and the perceptual
    loss's frozen tensors, activations of the device's share of the batch.

    Activations are counted in fp32, an upper bound with bf16-mixed. Not counted: the allocator's slack, buffers of
    distributed training and of convolution algorithms.
    """
    images = math.ceil(experiment.data.batch_size / devices)
    parts, perceptual = networks(experiment), perceptual_network(experiment)
    frozen = sum(buffer.numel() * buffer.element_size() for buffer in parts["quantizer"].buffers())
    if perceptual is not None:
        frozen += sum(p.numel() * p.element_size() for p in perceptual.network.parameters())
    return 16 * sum(map(count, parts.values())) + frozen + activation_bytes(experiment) * images


def activation_bytes(experiment: Experiment) -> int:
    """Bytes that one image keeps for the backward pass, at the larger of a step's two peaks: the generator's loss
    through decoder, perceptual loss and discriminator, or the discriminator's of a real and a reconstructed image."""
    with FakeTensorMode():  # unlike meta it has a CPU's attention, which like a GPU's never keeps an N x N matrix
        parts = networks(experiment, "cpu")
        encoder, decoder = nn.Sequential(parts["encoder"], parts["pre_quant"]), parts["decoder"]
        autoencoder = saved_bytes(encoder, blank_image(experiment, encoder))
        autoencoder += saved_bytes(nn.Sequential(parts["post_quant"], decoder), latents(experiment, parts))
    losses = critic = 0
    if (perceptual := perceptual_network(experiment)) is not None:
        image = blank_image(experiment, perceptual)
        losses += saved_bytes(perceptual, image.clone().requires_grad_(), image)
    if (discriminator := networks(experiment).get("discriminator")) is not None:
        image = blank_image(experiment, discriminator)
        critic = 2 * saved_bytes(discriminator, image)
        losses += saved_bytes(discriminator.requires_grad_(False), image.requires_grad_())
    return max(autoencoder + losses, critic)


def saved_bytes(module: nn.Module, *inputs: Tensor) -> int:
    """Bytes of the tensors that autograd saves in module(*inputs), each storage once, weights left out."""
    holders = [module, module.network] if isinstance(module, PerceptualLoss) else [module]
    weights = {p.untyped_storage()._cdata for holder in holders for p in holder.parameters()}
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
    """Multiply-accumulates of the whole run, a backward pass counting as two forward passes.

    An image costs 3 x (encoder + decoder), the search, the perceptual loss of a pair and its backward pass to one of
    them, and once the game has begun 2 x the discriminator in the generator's step and 6 x in its own. A device
    projects the codebook once a step. Not counted: R1, the adaptive weight, the optimizer, validation.
    """
    config, steps, macs = experiment.model.loss, experiment.trainer.max_steps, cost.macs
    batch = experiment.data.batch_size
    plays = {start: max(0, steps - start) for start in (config.discriminator_start, config.adversarial_start)}
    game = 6 * plays[config.discriminator_start] + 2 * plays[config.adversarial_start]
    image = 3 * (macs["encoder"] + macs["decoder"]) + macs["search"] + 1.5 * macs["perceptual"]
    whole = steps * (batch * image + 3 * devices * macs["projector"]) + game * batch * macs["discriminator"]
    return whole * experiment.model.optimizer.accumulate


def training_hours(experiment: Experiment, cost: Cost, devices: int, tflops: float) -> float:
    """Hours at `tflops` sustained 10^12 floating-point operations a second a device; a MAC is two operations."""
    return 2 * training_macs(experiment, cost, devices) / (tflops * 1e12 * devices) / 3600
