"""Optimizer and learning-rate schedule, shared by all modules."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.checks import at_least_one, not_negative, one_of, require
from lightning_modules.lightning_fixes import takes_unscaled_gradients
from lightning_modules.sharding import ShardedAdafactor

# Progress in [0, 1] and the floor, min_lr / lr -> factor of lr.
DECAYS: dict[str, Callable[[float, float], float]] = {
    "exponential": lambda progress, floor: floor**progress,
    "cosine": lambda progress, floor: floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress, floor: 1 - (1 - floor) * progress,
}
OPTIMIZERS = ("adamw", "adafactor")
FUSED = ("cpu", "cuda")  # devices on which AdamW updates all parameters in one call


@dataclass
class OptimizerConfig:
    """Linear warm-up to `lr`, a plateau until step `decay_from`, then `decay` to `min_lr` at the last step.

    `name`: adamw (Adam at weight decay 0; the decay is decoupled, as in paper A) or adafactor (torch's: factorised
    second moment and no first moment; `betas` and `eps` are not its, and its steps are `lr` times a parameter's own
    size). `decay`: exponential, cosine or linear. Steps count optimizer steps, each of `accumulate` micro-batches.
    `gradient_clip` bounds the gradient's norm, 0 = off.
    """

    name: str = "adamw"
    lr: float = 1e-4
    min_lr: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.99])
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay_from: int = 0  # no earlier than the warm-up's end
    decay: str = "cosine"
    accumulate: int = 1
    gradient_clip: float = 0.0

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a value that cannot be."""
        one_of(self, "name", OPTIMIZERS)
        one_of(self, "decay", DECAYS)
        not_negative(self)
        require(self.lr > 0, f"lr={self.lr} must be above 0")
        require(self.min_lr <= self.lr, f"min_lr={self.min_lr} must be at most lr={self.lr}")
        require(
            self.decay != "exponential" or self.min_lr > 0,
            f"min_lr={self.min_lr} must be above 0 for decay=exponential",
        )
        require(len(self.betas) == 2, f"betas={self.betas} must hold two numbers")
        require(all(0 <= beta < 1 for beta in self.betas), f"betas={self.betas} must be in [0, 1)")
        at_least_one(self, "accumulate")


def build_optimizer(groups: Iterable[Any], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of parameters, all with `weight_decay`, or of parameter groups that state their own decay."""
    groups = list(groups)
    parameters = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    is_sharded = any(isinstance(parameter, DTensor) for parameter in parameters)
    if config.name == "adafactor":
        adafactor = ShardedAdafactor if is_sharded else torch.optim.Adafactor
        return adafactor(groups, lr=config.lr, weight_decay=config.weight_decay)
    beta1, beta2 = config.betas
    can_fuse = not is_sharded and all(p.device.type in FUSED and p.dtype == torch.float32 for p in parameters)
    options: dict[str, Any] = {"fused": True} if can_fuse else {}
    options |= {"lr": config.lr, "betas": (beta1, beta2), "eps": config.eps, "weight_decay": config.weight_decay}
    return takes_unscaled_gradients(torch.optim.AdamW(groups, **options))


def decay_of_matrices(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Two groups of a module's trained parameters: weight decay reaches the matrices of linear layers only."""
    matrices = {id(layer.weight) for layer in module.modules() if isinstance(layer, nn.Linear)}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
    ]


def build_schedule(optimizer: torch.optim.Optimizer, config: OptimizerConfig, max_steps: int) -> LambdaLR:
    """lr * (t + 1) / warmup, lr until `decay_from`, then down to min_lr at `max_steps`."""
    floor, start = config.min_lr / config.lr, max(config.warmup_steps, config.decay_from)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = min(1.0, max(0, step - start) / max(1, max_steps - start))
        return DECAYS[config.decay](progress, floor)

    return LambdaLR(optimizer, factor)


def share_of_step(module: Any, batch_idx: int) -> float:
    """Factor of a micro-batch's loss under automatic optimization, so that each step takes the mean over its images.

    Lightning divides every loss by `accumulate`, but an epoch's last step may be of fewer micro-batches.
    """
    accumulate = module.config.optimizer.accumulate
    first = batch_idx // accumulate * accumulate
    return accumulate / min(accumulate, int(module.trainer.num_training_batches) - first)


def as_list(one_or_many: Any) -> list[Any]:
    """Always a list: Lightning returns a single optimizer or scheduler as it is, several as a list."""
    return one_or_many if isinstance(one_or_many, list) else [one_or_many]
