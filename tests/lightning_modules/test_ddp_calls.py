"""Why two optimizers need `leave_out`: DDP waits for every parameter that a backward pass might have reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_modules.distributed import leave_out, without_exchange


class Game(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.generator(x)


@pytest.fixture(autouse=True)
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def two_steps(model: nn.Module) -> None:
    for _ in range(2):
        model(torch.ones(1, 2)).sum().backward()


def test_ddp_waits_for_a_discriminator_unless_it_is_left_out() -> None:
    """The first half fails once DDP does without the private call."""
    with pytest.raises(RuntimeError, match="finished reduction"):
        two_steps(DistributedDataParallel(Game()))
    game = Game()
    leave_out(game, "discriminator")
    two_steps(DistributedDataParallel(game))
    assert game.generator.weight.grad is not None and game.discriminator.weight.grad is None


def test_without_exchange_leaves_the_gradient_of_this_process() -> None:
    model = DistributedDataParallel(nn.Linear(2, 1))
    with without_exchange(model):
        assert not model.require_backward_grad_sync
    assert model.require_backward_grad_sync
    with without_exchange(model.module):
        assert model.require_backward_grad_sync
