"""The chunked token loss against cross entropy of the whole logits."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.losses import tokens
from lightning_modules.losses.tokens import token_loss


def make(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 16, generator=generator, dtype=dtype, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(50, (3, 7), generator=generator)


@pytest.mark.parametrize("chunk", [0, 1, 4, 21, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_cross_entropy(chunk: int, dtype: torch.dtype) -> None:
    hidden, weight, targets = make(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    expected = F.cross_entropy((hidden @ weight.t()).flatten(0, 1), targets.flatten(), reduction="none")
    expected_grads = torch.autograd.grad(3 * expected.mean(), (hidden, weight))

    mean, per_token = token_loss(hidden, weight, targets, chunk)
    torch.testing.assert_close(per_token, expected.detach(), atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(mean, expected.mean(), atol=tolerance, rtol=tolerance)
    assert not per_token.requires_grad
    grads = torch.autograd.grad(3 * mean, (hidden, weight))
    torch.testing.assert_close(grads, expected_grads, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_one_side_without_gradient(frozen: str) -> None:
    hidden, weight, targets = make()
    (hidden if frozen == "hidden" else weight).requires_grad_(False)
    token_loss(hidden, weight, targets, 4).mean.backward()
    assert (hidden.grad is None, weight.grad is None) == (frozen == "hidden", frozen == "weight")


def test_large_logits_stay_finite() -> None:
    hidden, weight, targets = make()
    mean, _ = token_loss(1000 * hidden, weight, targets, 4)
    mean.backward()
    assert mean.isfinite() and hidden.grad is not None and hidden.grad.isfinite().all()


def test_autocast_keeps_softmax_and_gradients_in_float32() -> None:
    hidden, weight, targets = make()
    exact = torch.autograd.grad(token_loss(hidden, weight, targets).mean, (hidden, weight))
    with torch.autocast("cpu", torch.bfloat16):
        mean, per_token = token_loss(hidden, weight, targets, 4)
    grads = torch.autograd.grad(mean, (hidden, weight))
    assert {mean.dtype, per_token.dtype, *(grad.dtype for grad in grads)} == {torch.float32}
    for grad, reference in zip(grads, exact, strict=True):
        assert 0 < (grad - reference).norm() / reference.norm() < 0.02


def test_never_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor that is allocated is one chunk's logits, by a dispatch mode that sees every allocation."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            result = function(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, Tensor))
            return result

    monkeypatch.setattr(tokens, "LOGITS_AT_ONCE", 5 * 2000)
    hidden, targets = torch.randn(40, 2, requires_grad=True), torch.randint(2000, (40,))
    weight = torch.randn(2000, 2, requires_grad=True)
    with Sizes():
        token_loss(hidden, weight, targets).mean.backward()
    assert max(sizes) == 5 * 2000


def test_errors() -> None:
    hidden, weight, targets = make()
    with pytest.raises(ValueError, match=r"must be \(N, D\), \(V, D\) and \(N,\)"):
        token_loss(hidden, weight, targets[:, :-1])
    with pytest.raises(ValueError, match=r"must be \(N, D\), \(V, D\) and \(N,\)"):
        token_loss(hidden, weight[:, :-1], targets)
    mean, _ = token_loss(hidden, weight, targets)
    mean.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        mean.backward()
