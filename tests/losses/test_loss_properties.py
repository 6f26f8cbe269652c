"""What holds for any prediction: signs, zeros, symmetry, and gradients that are finite."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_modules.losses import ADVERSARIAL_LOSSES, l1_loss, l2_loss, logit_laplace_loss, logit_laplace_mean
from lightning_modules.losses.tokens import token_loss

repeatable = settings(derandomize=True, deadline=None, max_examples=25, database=None)
SEEDS = st.integers(0, 2**32)
SCALES = st.sampled_from([0.0, 1e-6, 1.0, 30.0, 1e4])


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(SEEDS, SCALES)
@repeatable
def test_distances(seed: int, scale: float) -> None:
    x, y = scale * normal(seed, 3, 3, 4, 4), scale * normal(seed + 1, 3, 3, 4, 4)
    for loss in (l1_loss, l2_loss):
        assert float(loss(x, x)) == 0 and float(loss(x, y)) >= 0
        torch.testing.assert_close(loss(x, y), loss(y, x))
        torch.testing.assert_close(loss(x, y), loss(x[[2, 0, 1]], y[[2, 0, 1]]))
    assert float(l1_loss(x, y)) ** 2 <= float(l2_loss(x, y)) * (1 + 1e-5) + 1e-30


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
@given(SEEDS, SCALES)
@repeatable
def test_the_adversarial_game(name: str, seed: int, scale: float) -> None:
    """The critic's loss is not negative; its gradients part real logits from fake ones, the generator's join them."""
    critic, generator = ADVERSARIAL_LOSSES[name]
    real, fake = ((scale * normal(seed + i, 4, 1, 3, 3)).requires_grad_() for i in range(2))
    loss = critic(real, fake)
    loss.backward()
    assert float(loss.detach()) >= 0 and math.isfinite(float(loss.detach()))
    assert bool((real.grad <= 0).all()) and bool((fake.grad >= 0).all())  # type: ignore[operator]
    fake.grad = None
    generator(fake).backward()
    assert bool((fake.grad <= 0).all()) and torch.isfinite(fake.grad).all()  # type: ignore[operator,arg-type]


@given(SEEDS, st.sampled_from([0.0, 1.0, 10.0]))
@repeatable
def test_logit_laplace(seed: int, scale: float) -> None:
    """Finite with its gradient for any prediction; the image is within its range."""
    prediction = (scale * normal(seed, 2, 6, 4, 4)).requires_grad_()
    image = normal(seed + 1, 2, 3, 4, 4).clamp(-1, 1)
    loss = logit_laplace_loss(prediction, image)
    loss.backward()
    assert torch.isfinite(loss.detach()) and torch.isfinite(prediction.grad).all()  # type: ignore[arg-type]
    mean = logit_laplace_mean(prediction)
    assert mean.shape == image.shape and float(mean.detach().abs().max()) <= 1.25 + 1e-5


@given(SEEDS, st.integers(1, 20), st.integers(1, 40), SCALES)
@repeatable
def test_the_token_loss_is_cross_entropy(seed: int, num_tokens: int, vocabulary: int, scale: float) -> None:
    hidden, weight = (scale * normal(seed, num_tokens, 6)).requires_grad_(), normal(seed + 1, vocabulary, 6)
    targets = torch.randint(vocabulary, (num_tokens,), generator=torch.Generator().manual_seed(seed))
    loss = token_loss(hidden, weight, targets)
    loss.mean.backward()
    expected = F.cross_entropy(hidden.detach() @ weight.T, targets, reduction="none")
    torch.testing.assert_close(loss.per_token.flatten(), expected, rtol=1e-4, atol=1e-4)
    assert float(loss.mean.detach()) >= -1e-6 and torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]
