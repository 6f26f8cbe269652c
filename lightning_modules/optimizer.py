"""Optimizer and learning-rate schedule, shared by all modules."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


@dataclass
class OptimizerConfig:
    """Adam (or AdamW when `weight_decay` > 0, decoupled as in paper A), linear warm-up, then cosine to `min_lr`.

    `warmup_steps` and the length of the cosine count optimizer steps.
    `accumulate` micro-batches make one step. `gradient_clip` bounds the gradient norm, 0 = off.
    """

    lr: float = 1e-4
    min_lr: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    accumulate: int = 1
    gradient_clip: float = 0.0


def build_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.Optimizer:
    beta1, beta2 = config.betas
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=(beta1, beta2), eps=config.eps, weight_decay=config.weight_decay
    )


def warmup_cosine(optimizer: torch.optim.Optimizer, config: OptimizerConfig, max_steps: int) -> LambdaLR:
    """lr * (t + 1) / warmup, then min_lr + (lr - min_lr) * (1 + cos(pi * progress)) / 2 until `max_steps`."""
    warmup, floor = config.warmup_steps, config.min_lr / config.lr

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, max_steps - warmup))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
