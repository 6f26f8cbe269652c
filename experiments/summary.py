"""The screen before training: what will be trained, how large it is, and about how long it takes."""

import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from experiments.config import Experiment
from lightning_modules.networks import BACKBONES
from lightning_modules.tokenizer import Tokenizer


def count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)


def activation_bytes(experiment: Experiment) -> int:
    """Bytes that backward keeps for one image through encoder and decoder, counted on the meta device."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        return tensor

    size = experiment.data.image_size
    with torch.device("meta"):
        module = autoencoder(experiment)
        image = torch.zeros(1, 3, size, size)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(image)
    del output
    return sum(kept.values())


def autoencoder(experiment: Experiment) -> nn.Sequential:
    """Encoder and decoder without the quantizer: what holds most of the memory and time."""
    config, size = experiment.model, experiment.data.image_size
    encoder_class, decoder_class = BACKBONES[config.backbone.name][:2]
    encoder, decoder = encoder_class(config.backbone, size), decoder_class(config.backbone, size)
    dims = encoder.width, config.code_dim, decoder.width
    return nn.Sequential(encoder, nn.Linear(*dims[:2]), nn.Linear(*dims[1:]), decoder)


def memory_bytes(experiment: Experiment, module: Tokenizer) -> int:
    """Estimate: weights, gradients and two Adam moments in fp32, buffers, activations of a batch on one device."""
    state = 16 * count(module) + sum(b.numel() * b.element_size() for b in module.buffers())
    return state + activation_bytes(experiment) * experiment.data.batch_size


def seconds_per_step(experiment: Experiment, module: Tokenizer) -> float:
    """Rough: encoder, decoder and perceptual loss timed forward and backward on a few images, scaled to the batch.

    Leaves out the discriminator, the quantizer and the optimizer; changes nothing in the module.
    """
    size, batch = experiment.data.image_size, experiment.data.batch_size
    num_images = max(1, min(batch, 32 * 32 * 32 // size**2))
    image = torch.zeros(num_images, 3, size, size, device=module.device)
    seconds = 0.0
    for _ in range(2):  # the first run allocates
        start = time.perf_counter()
        output = module.decoder(module.post_quant(module.pre_quant(module.encoder(image))))
        loss = output.square().mean()
        if module.perceptual is not None:
            loss = loss + module.perceptual(output[:, :3], image)
        torch.autograd.grad(loss, [p for p in module.encoder.parameters() if p.requires_grad], allow_unused=True)
        seconds = time.perf_counter() - start
    return seconds * batch / num_images


def print_summary(experiment: Experiment, module: Tokenizer, name: str, data_id: str) -> None:
    model, trainer = experiment.model, experiment.trainer
    grid = module.encoder.grid_size
    minutes = seconds_per_step(experiment, module) * trainer.max_steps / 60
    generator = count(module) - count(module.discriminator)
    table = Table(title=f"{name}  (seed {experiment.seed})", show_header=False, title_justify="left")
    size = experiment.data.image_size
    rows = {
        "model": f"{model.name}: {model.backbone.name} backbone, {model.quantizer.name} quantizer",
        "codebook": f"{model.codebook_size:,} codes of {model.code_dim} dimensions",
        "data": f"{data_id}, {size} x {size} pixels, batch {experiment.data.batch_size}",
        "tokens per image": f"{grid * grid} ({grid} x {grid})",
        "parameters": f"{generator / 1e6:.2f} M trained, discriminator {count(module.discriminator) / 1e6:.2f} M",
        "peak memory, estimate": f"{memory_bytes(experiment, module) / 2**30:.2f} GiB for model and batch",
        "expected time, rough": f"{minutes:.1f} min for {trainer.max_steps:,} steps here, {trainer.precision}",
    }
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)
