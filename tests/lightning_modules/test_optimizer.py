"""The optimizers and the schedule of all modules."""

from itertools import pairwise

import pytest
import torch

from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.optimizer import OptimizerConfig, build_optimizer, build_schedule, decay_of_matrices

CONFIG = OptimizerConfig(lr=1e-2, min_lr=1e-4, warmup_steps=4, decay_from=10, weight_decay=0.1)


def gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(dims=[1, 2, 16, 32], dropout=0), 32, (4, 4), 10)


def rates(config: OptimizerConfig, steps: int = 31) -> list[float]:
    """The learning rate of each step of a run of 30, and after it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.lr)
    schedule = build_schedule(optimizer, config, 30)
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
    """The schedule of A 4 and its variants."""
    found = rates(OptimizerConfig(**{**vars(CONFIG), "decay": decay}), 35)
    assert found[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert found[4:11] == pytest.approx([0.01] * 7)
    assert found[20] == pytest.approx(middle)
    assert found[30:] == pytest.approx([1e-4] * 5), "and no further"
    assert all(a > b for a, b in pairwise(found[10:31]))


def test_without_a_plateau_the_decay_starts_at_the_warm_ups_end() -> None:
    """The schedule of both papers' tokenizers."""
    found = rates(OptimizerConfig(lr=1e-2, warmup_steps=4))
    assert found[3] == found[4] == 0.01 > found[5]
    assert found[17] == pytest.approx(0.005) and found[30] == pytest.approx(0)


def test_weight_decay_reaches_matrices_of_linear_layers_only() -> None:
    model = gpt()
    decayed, others = build_optimizer(decay_of_matrices(model, CONFIG), CONFIG).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(parameter)] for parameter in decayed["params"]}
    linear = {"attention.qkv", "attention.proj", "mlp.0", "mlp.3"}
    assert found == {f"blocks.0.{name}.weight" for name in linear} | {"head.weight"}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert found | {names[id(parameter)] for parameter in others["params"]} == set(names.values())


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_weight_decay_reaches_bare_parameters(name: str) -> None:
    (group,) = build_optimizer(gpt().parameters(), OptimizerConfig(name=name, weight_decay=0.1)).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == len(list(gpt().parameters()))


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_both_optimizers_learn(name: str) -> None:
    model, config = gpt(), OptimizerConfig(name=name, lr=0.05, min_lr=0.01)
    optimizer = build_optimizer(decay_of_matrices(model, config), config)
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
    again = build_optimizer(decay_of_matrices(model, config), config)
    again.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "adam"}, "^name='adam' is none of adamw, adafactor"),
        ({"decay": "step"}, "^decay='step' is none of exponential, cosine, linear"),
        ({"lr": 0.0}, "^lr=0.0 must be above 0"),
        ({"min_lr": 1.0}, "^min_lr=1.0 must be at most lr=0.0001"),
        ({"min_lr": 0.0, "decay": "exponential"}, "^min_lr=0.0 must be above 0 for decay=exponential"),
        ({"warmup_steps": -1}, "^warmup_steps=-1 must not be negative"),
        ({"betas": [0.9]}, r"^betas=\[0.9\] must hold two numbers"),
        ({"betas": [0.9, 1.0]}, r"^betas=\[0.9, 1.0\] must be in \[0, 1\)"),
        ({"accumulate": 0}, "^accumulate=0 must be at least 1"),
    ],
)
def test_bad_values(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options).check()
