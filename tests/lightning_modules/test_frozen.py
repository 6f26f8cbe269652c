import torch
from torch import nn

from lightning_modules.frozen import FrozenModule, freeze


def test_freeze_takes_dropout_and_gradients_away_and_gives_the_network_itself() -> None:
    network = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    assert freeze(network) is network
    x = torch.randn(2, 3, requires_grad=True)
    assert torch.equal(network(x), network(x))
    network(x).sum().backward()
    assert x.grad is not None and network[0].weight.grad is None


def test_what_holds_a_frozen_module_neither_trains_nor_saves_it_but_moves_it() -> None:
    holder = nn.ModuleList([FrozenModule(nn.Linear(3, 3))])
    holder.train().double()
    network = holder[0].network  # type: ignore[union-attr]
    assert not network.training and network.weight.dtype == torch.float64
    assert not list(holder.parameters()) and not holder.state_dict()
