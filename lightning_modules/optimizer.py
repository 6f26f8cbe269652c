"""Optimizer and learning-rate schedule, shared by all modules."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.checks import at_least_one, not_negative, require
from lightning_modules.sharding import ShardedAdafactor


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

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        not_negative(self)
        require(self.lr > 0, f"lr={self.lr} must be above 0")
        require(len(self.betas) == 2, f"betas={self.betas} must hold two numbers")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas={self.betas} must be in [0, 1)")
        at_least_one(self, "accumulate")


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


def share_of_step(module: Any, batch_idx: int) -> float:
    """Factor of a micro-batch's loss under automatic optimization: each step then takes the mean over its images.

    Lightning divides every loss by `accumulate`, but an epoch's last step may be of fewer micro-batches.
    """
    accumulate = module.config.optimizer.accumulate
    first = batch_idx // accumulate * accumulate
    return accumulate / min(accumulate, int(module.trainer.num_training_batches) - first)


def without_exchange(model: Any) -> AbstractContextManager[None]:
    """Within, backward passes leave gradients where they are, should `model`, a trainer's, be wrapped in DDP."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def leave_out(module: nn.Module, part: str) -> None:
    """DDP neither averages the gradients of the submodule `part` nor waits for them: its own optimizer step does.

    Without it each of two optimizers' backward passes would exchange the gradients of both (find_unused_parameters).
    """
    names = [name for name, _ in module.named_parameters() if name.startswith(f"{part}.")]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, names)


def as_list(one_or_many: Any) -> list[Any]:
    """Lightning gives a single optimizer or scheduler bare, several as a list."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]


@dataclass
class StageTwoOptimizerConfig:
    """VIM's optimizer (paper A, 3.4): Adam as Adafactor; linear warm-up, plateau, exponential decay to `min_lr`.

    `name`: adamw | adafactor (torch's: factorised second moment, no first moment; A keeps one in int8; `betas` and
    `eps` are not its, and its steps are `lr` times a parameter's own size). Weight decay reaches the matrices of
    linear layers only. `decay`: exponential (A) | cosine | linear (B), from `decay_from` on.
    Steps count optimizer steps; `accumulate` micro-batches make one.
    """

    name: str = "adamw"
    lr: float = 4.5e-4
    min_lr: float = 1e-5
    betas: list[float] = field(default_factory=lambda: [0.9, 0.96])
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_from: int = 0
    decay: str = "exponential"
    accumulate: int = 1
    gradient_clip: float = 0.0

    def check(self) -> None:
        """Raises ValueError for a value that cannot be."""
        if self.name not in ("adamw", "adafactor"):
            raise ValueError(f"name='{self.name}' is none of adamw, adafactor")
        if self.decay not in DECAYS:
            raise ValueError(f"decay='{self.decay}' is none of {', '.join(DECAYS)}")
        if not 0 < self.min_lr <= self.lr:
            raise ValueError(f"min_lr={self.min_lr} must be above 0 and at most lr={self.lr}")
        if self.name == "adafactor" and self.betas != StageTwoOptimizerConfig().betas:
            default = StageTwoOptimizerConfig().betas
            raise ValueError(f"betas={self.betas} has no effect on adafactor: set it to {default}")
        if self.accumulate < 1 or len(self.betas) != 2:
            raise ValueError(f"accumulate={self.accumulate} must be at least 1, and betas={self.betas} two numbers")


# Progress in [0, 1] and the floor, min_lr / lr -> factor of lr.
DECAYS: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda progress, floor: floor**progress,
    "cosine": lambda progress, floor: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress, floor: 1 - (1 - floor) * progress,
}


def build_stage_two_optimizer(module: nn.Module, config: StageTwoOptimizerConfig) -> torch.optim.Optimizer:
    """Over the trained parameters of `module`."""
    matrices = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]
    if config.name == "adafactor":
        is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
        return (ShardedAdafactor if is_sharded else torch.optim.Adafactor)(groups, lr=config.lr)
    beta1, beta2 = config.betas
    return torch.optim.AdamW(groups, lr=config.lr, betas=(beta1, beta2), eps=config.eps)


def warmup_decay(optimizer: torch.optim.Optimizer, config: StageTwoOptimizerConfig, max_steps: int) -> LambdaLR:
    """lr * (t + 1) / warmup, lr until `decay_from`, then down to min_lr at `max_steps`."""
    floor, start = config.min_lr / config.lr, max(config.warmup_steps, config.decay_from)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = min(1.0, max(0, step - start) / max(1, max_steps - start))
        return DECAYS[config.decay](progress, floor)

    return LambdaLR(optimizer, factor)
