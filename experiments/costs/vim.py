"""What training a VIM costs, counted like a tokenizer in `costs/tokenizer.py`: parameters, MACs, memory, hours.

Letters: T tokens an image, D width, V codes.
"""

import math

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from experiments.config.experiment import Downstream
from experiments.costs.tokenizer import Cost, count, count_cost, count_macs, networks, saved_bytes
from lightning_modules.losses.tokens import LOGITS_AT_ONCE
from lightning_modules.networks.gpt import GPT, GPTBlock

NUM_CLASSES = {"image_folder": 1000}  # where only the files know: ImageNet's; 10 elsewhere
# Numbers held for a weight: itself, its gradient, Adam's two moments; Adafactor's are factorised to nearly none.
NUMBERS_A_WEIGHT = {"adamw": 4, "adafactor": 2}


def transformer(experiment: Downstream) -> GPT:
    """The experiment's transformer on the meta device, for the tokens that its tokenizer's networks make."""
    config, upstream = experiment.model, experiment.upstream
    grid = networks(upstream)["encoder"].grid_size
    classes = NUM_CLASSES.get(experiment.data.name, 10) if config.class_conditional else 0
    with torch.device("meta"):
        return GPT(config.gpt, upstream.model.codebook_size, (grid, grid), classes)


def count_vim(experiment: Downstream) -> Cost:
    """MACs are of one image with all its tokens at once, as in training; "tokenizer" is what encoding it adds."""
    gpt = transformer(experiment)
    blocks, inputs = nn.Sequential(*gpt.blocks), torch.zeros(1, gpt.num_tokens, gpt.size.width, device="meta")
    tokenizer = 0
    if experiment.model.encode_on_the_fly:
        below = count_cost(experiment.upstream).macs
        tokenizer = below["encoder"] + below["search"]
    head = count(gpt.head)
    return Cost(
        tokens=gpt.num_tokens,
        parameters={"blocks": count(blocks), "tables and norm": count(gpt) - count(blocks) - head, "head": head},
        macs={"blocks": count_macs(blocks, inputs), "head": gpt.num_tokens * head, "tokenizer": tokenizer},
    )


def vim_memory_bytes(experiment: Downstream, devices: int = 1) -> int:
    """Estimate for one device: weights, gradients and optimizer, activations of its share of the batch, one chunk of
    logits, in fp32. Not counted: a tokenizer that encodes on the fly, the allocator's slack, buffers of distributed
    training.
    """
    images = math.ceil(experiment.data.batch_size / devices)
    gpt = transformer(experiment)
    with FakeTensorMode():  # see activation_bytes of costs/tokenizer.py
        blocks = [GPTBlock(gpt.size, gpt.config) for _ in gpt.blocks]
        activations = saved_bytes(nn.Sequential(*blocks), torch.zeros(1, gpt.num_tokens, gpt.size.width))
    numbers = NUMBERS_A_WEIGHT[experiment.model.optimizer.name] * count(gpt)
    logits = min(LOGITS_AT_ONCE, images * gpt.num_tokens * gpt.vocab_size)
    return 4 * (numbers + logits) + images * activations


def vim_hours(experiment: Downstream, cost: Cost, devices: int, tflops: float) -> float:
    """Hours at `tflops` sustained 10^12 operations a second a device; a backward pass is two forward passes."""
    image = 3 * (cost.macs["blocks"] + cost.macs["head"]) + cost.macs["tokenizer"]
    steps = experiment.trainer.max_steps * experiment.model.optimizer.accumulate
    return 2 * steps * experiment.data.batch_size * image / (tflops * 1e12 * devices) / 3600
