"""Stage 2's optimizers and schedule (paper A, 3.4)."""

from itertools import pairwise

import pytest
import torch

from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.optimizer import StageTwoOptimizerConfig, build_stage_two_optimizer, warmup_decay

CONFIG = StageTwoOptimizerConfig(lr=1e-2, min_lr=1e-4, warmup_steps=4, decay_from=10, weight_decay=0.1)


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(dims=[1, 2, 16, 32], dropout=0), 32, (4, 4), 10)


def rates(decay: str, steps: int = 31) -> list[float]:
    """The learning rate of each step of a run of 30, and after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=CONFIG.lr)
    schedule = warmup_decay(optimizer, StageTwoOptimizerConfig(**{**vars(CONFIG), "decay": decay}), 30)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("decay", "middle"),
    [("exponential", (1e-2 * 1e-4) ** 0.5), ("cosine", (1e-2 + 1e-4) / 2), ("linear", (1e-2 + 1e-4) / 2)],
)
def test_warm_up_plateau_decay(decay: str, middle: float) -> None:
    found = rates(decay, 35)
    assert found[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert found[4:11] == pytest.approx([0.01] * 7)
    assert found[20] == pytest.approx(middle)
    assert found[30:] == pytest.approx([1e-4] * 5), "and no further"
    assert all(a > b for a, b in pairwise(found[10:31]))


def test_weight_decay_reaches_matrices_of_linear_layers_only() -> None:
    model = gpt()
    decayed, others = build_stage_two_optimizer(model, CONFIG).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in decayed["params"]}
    linear = {"attention.qkv", "attention.proj", "mlp.0", "mlp.3"}
    assert found == {f"blocks.0.{name}.weight" for name in linear} | {"head.weight"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert found | {names[id(parameter)] for parameter in others["params"]} == set(names.values())


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_both_optimizers_learn(name: str) -> None:
    model = gpt()
    optimizer = build_stage_two_optimizer(model, StageTwoOptimizerConfig(name=name, lr=0.05, min_lr=0.01))
    tokens, labels, losses = torch.randint(32, (4, 16)), torch.arange(4), []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(
            model.logits(model(tokens[:, :-1], labels)).flatten(0, 1), tokens.flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.8 * losses[0]
    if name == "adafactor":
        state = optimizer.state[model.head.weight]
        assert max(value.numel() for value in state.values() if torch.is_tensor(value)) <= 32, "factorised"
    model.load_state_dict(model.state_dict())
    again = build_stage_two_optimizer(model, StageTwoOptimizerConfig(name=name, lr=0.05, min_lr=0.01))
    again.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adafactor", "betas": [0.9, 0.95]}, r"betas=\[0.9, 0.95\] has no effect on adafactor: set it to \["),
        ({"name": "adam"}, "name='adam' is none of adamw, adafactor"),
        ({"decay": "step"}, "decay='step' is none of exponential, cosine, linear"),
        ({"min_lr": 1.0}, "min_lr=1.0 must be above 0 and at most lr"),
        ({"min_lr": 0.0}, "min_lr=0.0 must be above 0"),
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
    ],
)
def test_bad_values(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageTwoOptimizerConfig(**options).check()
