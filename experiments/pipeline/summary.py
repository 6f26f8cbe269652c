"""The screen before training: what will be trained, how large it is, and about how long it takes."""

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.config.experiment import Experiment
from experiments.costs.tokenizer import count, memory_bytes
from experiments.pipeline.codebooks.extraction import build_device
from experiments.runtime.ranks import num_devices
from lightning_modules.linear_probe import LinearProbe
from lightning_modules.losses.tokens import token_loss
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM


def seconds_per_batch(experiment: Experiment, module: Tokenizer) -> float:
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


def expected_time(experiment: Experiment, seconds: float) -> dict[str, str]:
    """A row, where `seconds` for a global batch on the CPU say something: on a GPU the progress line has to do."""
    if build_device(experiment).type != "cpu":
        return {}
    trainer, devices = experiment.trainer, num_devices(experiment.runtime)
    minutes = seconds * experiment.model.optimizer.accumulate * trainer.max_steps / devices / 60
    return {"expected time, rough": f"{minutes:.1f} min for {trainer.max_steps:,} steps here, {trainer.precision}"}


def print_summary(experiment: Experiment, module: Any, name: str, data_id: str) -> None:
    rows = ROWS.get(experiment.model.name, tokenizer_rows)(experiment, module, data_id)
    table = Table(title=f"{name}  (seed {experiment.seed})", show_header=False, title_justify="left")
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


def vim_rows(experiment: Experiment, module: VIM, data_id: str) -> dict[str, str]:
    model, gpt = experiment.model, module.gpt
    size, batch = gpt.size, experiment.data.batch_size
    start = time.perf_counter()
    few = torch.zeros(min(batch, 8), gpt.num_tokens - 1, dtype=torch.long, device=module.device)
    with torch.random.fork_rng():  # dropout's
        hidden = gpt(few)
    loss = token_loss(hidden, gpt.head.weight, few.new_zeros(len(few), gpt.num_tokens)).mean
    torch.autograd.grad(loss, list(gpt.head.parameters()))
    seconds = (time.perf_counter() - start) * batch / len(few)
    rows, columns = gpt.grid_size
    return {
        "model": f"{model.name}: {size.blocks} blocks, {size.heads} heads, width {size.width}, MLP {size.mlp_width}",
        "tokens": f"{gpt.num_tokens} ({rows} x {columns}) of {gpt.vocab_size:,} codes by {experiment.recipe}",  # type: ignore[attr-defined]
        "classes": f"{gpt.num_classes or 'none, unconditional'}",
        "data": f"{data_id}, batch {batch}",
        "parameters": f"{count(module) / 1e6:.2f} M",
    } | expected_time(experiment, seconds)


def probe_rows(experiment: Experiment, module: LinearProbe, data_id: str) -> dict[str, str]:
    features = module.features
    upstream = f"{experiment.recipe}, {experiment.upstream.digest()}"  # type: ignore[attr-defined]
    return {
        "model": f"{experiment.model.name} of {upstream}",
        "features": f"{features.name}, mean of {features.num_tokens} tokens, {features.width} wide",
        "blocks": f"{len(features.blocks)}, each with a head for {module.bias.shape[-1]} classes",
        "data": f"{data_id}, batch {experiment.data.batch_size}, {module.config.heldout:.0%} of training held out",
        "parameters": f"{count(module):,} trained, {sum(p.numel() for p in features.model.parameters()):,} frozen",
        "steps": f"{experiment.trainer.max_steps:,}, {experiment.trainer.precision}",
    }


def tokenizer_rows(experiment: Experiment, module: Tokenizer, data_id: str) -> dict[str, str]:
    model = experiment.model
    grid = module.encoder.grid_size
    seconds = seconds_per_batch(experiment, module)
    generator = count(module) - count(module.discriminator)
    memory = memory_bytes(experiment, num_devices(experiment.runtime)) / 2**30
    size = experiment.data.image_size
    return {
        "model": f"{model.name}: {model.backbone.name} backbone, {model.quantizer.name} quantizer",
        "codebook": f"{model.codebook_size:,} codes of {model.code_dim} dimensions",
        "data": f"{data_id}, {size} x {size} pixels, batch {experiment.data.batch_size}",
        "tokens per image": f"{grid * grid} ({grid} x {grid})",
        "perceptual loss": module.perceptual.name if module.perceptual is not None else "none",
        "parameters": f"{generator / 1e6:.2f} M trained, discriminator {count(module.discriminator) / 1e6:.2f} M",
        "peak memory, estimate": f"{memory:.2f} GiB a device",
    } | expected_time(experiment, seconds)


ROWS: dict[str, Callable[[Experiment, Any, str], dict[str, str]]] = {"vim": vim_rows, "linear_probe": probe_rows}
