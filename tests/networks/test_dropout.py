"""Dropout by random bytes: shares, means, gradients, and the generator that it draws from."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks import gpt
from lightning_modules.networks.dropout import Dropout, dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_and_mean(p: float, dtype: torch.dtype) -> None:
    """Within five standard errors, also in each of the eight bytes of a word."""
    torch.manual_seed(0)
    y = dropout(torch.ones(8 * 50_000 + 3, dtype=dtype), p)
    share = round(256 * p) / 256
    assert abs(share - p) <= 1 / 512
    for numbers in (y, *y[: 8 * 50_000].view(-1, 8).unbind(1)):
        dropped = (numbers == 0).double()
        assert abs(float(dropped.mean()) - share) < 5 * (share * (1 - share) / len(numbers)) ** 0.5
    torch.testing.assert_close(y[y > 0].unique(), torch.tensor([1 / (1 - share)], dtype=dtype))


def test_neighbours_and_calls_are_independent() -> None:
    torch.manual_seed(0)
    first, second = (dropout(torch.ones(400_000), 0.5) for _ in range(2))
    for a, b in [(first, second), *((first[:-lag], first[lag:]) for lag in (1, 2, 4, 8, 64))]:
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 5 / 400_000**0.5


@pytest.mark.parametrize("p", [1e-4, 1 - 1e-4])
def test_a_tiny_share_is_neither_none_nor_all(p: float) -> None:
    share = float((dropout(torch.ones(100_000), p) == 0).float().mean())
    assert min(share, 1 - share) == pytest.approx(1 / 256, rel=0.3)


def test_gradient_is_that_of_the_mask() -> None:
    x = torch.randn(3, 50, 7, dtype=torch.float64).transpose(0, 1).requires_grad_()
    y = dropout(x, 0.3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(y, x * gradient)
    assert 0 < (gradient == 0).sum() < gradient.numel()


def test_same_state_same_mask() -> None:
    """So that a resumed run drops what the uninterrupted one would have."""
    x, state = torch.randn(100), torch.get_rng_state()
    first = dropout(x, 0.5)
    assert not torch.equal(dropout(x, 0.5), first)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x, 0.5), first)


def test_nothing_is_dropped_or_drawn_in_evaluation_or_at_0() -> None:
    x, state = torch.randn(5), torch.get_rng_state()
    assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


# ---- attention, whose weights are dropped


@pytest.mark.parametrize(("dtype", "p", "tolerance"), [(torch.bfloat16, 0.0, 2e-2), (torch.float32, 1e-9, 1e-5)])
def test_attention_in_parts_equals_torchs(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, p: float, tolerance: float
) -> None:
    """Value and gradients, in the order of axes that the transformer has."""
    torch.manual_seed(0)
    monkeypatch.setattr(gpt, "dropout", lambda x, _: x)
    qkv = torch.randn(2, 9, 3, 4, 8).to(dtype).requires_grad_()
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    ours, theirs = gpt.attend(q, k, v, p), F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    weight = torch.randn_like(ours)
    gradients = [torch.autograd.grad((y * weight).sum(), qkv, retain_graph=True)[0] for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=4 * tolerance, rtol=tolerance)


def test_dropped_attention_keeps_its_mean() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    mean = torch.stack([gpt.attend(q, k, v, 0.3) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, gpt.attend(q, k, v, 0.0), atol=0.1, rtol=0)
