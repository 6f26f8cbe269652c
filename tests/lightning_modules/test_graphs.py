from contextlib import contextmanager

import pytest
import torch
from conftest import TinyExperiment
from latent_cases import build as build_latent_prior
from latent_cases import tiny_latents
from torch import Tensor, nn
from vim_cases import build as build_vim
from vim_cases import tiny_vim

from lightning_modules.graphs import PLAIN_CALLS, GraphedPass, replay_training_calls


class Recorded:
    """Stands in for a CUDA graph: a replay runs the pass again and writes to the tensors of the capture."""

    def __init__(self) -> None:
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    made: list[Recorded] = []

    @contextmanager
    def record(graph: Recorded, capture_error_mode: str):
        assert not torch.is_autocast_cache_enabled()
        made.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", record)
    return made


class Pass:
    def __init__(self) -> None:
        self.layer, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)
        self.calls: list[bool] = []
        self.optimizer = torch.optim.SGD([*self.layer.parameters(), *self.unused.parameters()], 0.1)

    def run(self, x: Tensor, doubled: bool) -> Tensor:
        self.calls.append(doubled)
        loss = (1 + doubled) * self.layer(x).mean()
        loss.backward()
        return loss.detach()


def test_each_combination_of_flags_is_captured_after_some_plain_calls(graphs: list[Recorded]) -> None:
    work = Pass()
    graphed = GraphedPass(work.run, work.optimizer, lambda: None)
    for _ in range(PLAIN_CALLS + 3):
        for doubled in (False, True):
            work.optimizer.zero_grad()
            graphed(torch.randn(2, 3), doubled)
    assert [graph.replays for graph in graphs] == [3, 3]
    assert len(work.calls) == 2 * (PLAIN_CALLS + 1)
    work.optimizer.zero_grad()
    graphed(torch.randn(4, 3), True)  # another shape is run as it is
    assert len(graphs) == 2


def test_a_replay_reads_its_batch_and_brings_its_gradients(graphs: list[Recorded]) -> None:
    work = Pass()
    graphed = GraphedPass(work.run, work.optimizer, lambda: None)
    for _ in range(PLAIN_CALLS + 1):
        work.optimizer.zero_grad()
        graphed(torch.zeros(2, 3), True)
    work.optimizer.zero_grad()
    batch = torch.randn(2, 3)
    graphed(batch, True)
    captured = next(iter(graphed.captured.values()))
    assert torch.equal(captured.inputs[0], batch)
    assert [p.grad for p in graphed.parameters] == captured.gradients
    assert captured.gradients[1] is not None and captured.gradients[1].item() == 2.0
    assert captured.gradients[2] is None  # of a layer that took no part


def test_nothing_is_captured_while_the_state_changes(graphs: list[Recorded]) -> None:
    work, waited = Pass(), [0]
    graphed = GraphedPass(work.run, work.optimizer, lambda: list(waited))
    for _ in range(3 * PLAIN_CALLS):
        work.optimizer.zero_grad()
        graphed(torch.zeros(2, 3), False)
        waited[0] += 1
    assert not graphs
    for _ in range(PLAIN_CALLS + 1):
        work.optimizer.zero_grad()
        graphed(torch.zeros(2, 3), False)
    assert len(graphs) == 1


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.unused = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        return self.layer(x) * (1 if scale is None else scale)


@pytest.mark.parametrize("scale", [None, torch.tensor(3.0)])
def test_the_first_training_call_of_a_network_is_captured(
    monkeypatch: pytest.MonkeyPatch, scale: Tensor | None
) -> None:
    captured: list[tuple[Tensor, ...]] = []
    replays: list[tuple[Tensor, ...]] = []

    def capture(network: nn.Module, samples: tuple[Tensor, ...], allow_unused_input: bool) -> None:
        """Stands in for torch's, which takes tensors alone, and runs evaluation as it was."""
        assert allow_unused_input and not torch.is_autocast_cache_enabled()
        captured.append(samples)
        plain = network.forward

        def forward(*inputs: Tensor) -> Tensor:
            if network.training:
                replays.append(inputs)
            return plain(*inputs)

        network.forward = forward

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    network, x, y = Scaled(), torch.randn(2, 3), torch.randn(2, 3)
    expected = [network(x, scale), network(y, scale)]
    replay_training_calls(network)
    with torch.no_grad():
        network(x, scale)
    network.eval()(x, scale)
    assert not captured
    found = [network.train()(x, scale), network(y, scale)]
    assert all(map(torch.equal, found, expected))
    tensors = 1 if scale is None else 2
    assert [len(samples) for samples in captured] == [tensors] and [len(inputs) for inputs in replays] == [tensors] * 2
    assert torch.equal(captured[0][0], x) and captured[0][0] is not x, "a replay overwrites what it was captured with"
    assert torch.equal(network.eval()(y, scale), expected[1]) and len(replays) == 2


def test_a_prior_captures_the_network_that_it_trains(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[nn.Module] = []
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda network, *_, **__: captured.append(network))
    vim, _ = build_vim(tiny_vim(tiny))
    sit, _ = build_latent_prior(tiny_latents(tiny, "sit"))
    vim.capture_steps()
    vim.gpt(torch.zeros(2, 63, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    sit.capture_steps()
    sit.network(torch.zeros(2, 8, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long))
    assert captured == [vim.gpt, sit.network]
