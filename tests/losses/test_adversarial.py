import pytest
import torch
from parity_vectors import load_io
from torch import nn

from lightning_modules.losses.adversarial import (
    ADVERSARIAL_LOSSES,
    adaptive_weight,
    hinge_d_loss,
    hinge_g_loss,
    non_saturating_d_loss,
    non_saturating_g_loss,
    r1_penalty,
    with_gradient,
)


def test_losses_equal_taming() -> None:
    io = load_io("taming_discriminator")
    real, fake = io["real_logits"], io["fake_logits"]
    torch.testing.assert_close(hinge_d_loss(real, fake), io["hinge_d_loss"])
    torch.testing.assert_close(non_saturating_d_loss(real, fake), io["vanilla_d_loss"])
    torch.testing.assert_close(hinge_g_loss(fake), io["g_loss"])


def test_losses_equal_enhancing_transformers() -> None:
    io = load_io("enhancing_stylegan_discriminator")
    real, fake = io["real_logits"], io["fake_logits"]
    torch.testing.assert_close(hinge_d_loss(real, fake), io["hinge_d"])
    torch.testing.assert_close(hinge_g_loss(fake), io["hinge_g"])
    torch.testing.assert_close(non_saturating_d_loss(real, fake), io["vanilla_d"])
    torch.testing.assert_close(non_saturating_g_loss(fake), io["vanilla_g"])


def test_r1_penalty_equals_enhancing_transformers() -> None:
    io = load_io("enhancing_stylegan_discriminator")
    images = io["image"].requires_grad_()
    # A discriminator that is linear in each image and has the recorded gradient stands in for the public one.
    logits = (images * io["grad_image"]).sum(dim=(1, 2, 3))
    torch.testing.assert_close(r1_penalty(logits, images), io["r1_penalty"])


@pytest.mark.parametrize("name", ADVERSARIAL_LOSSES)
def test_a_discriminator_that_is_right_loses_less(name: str) -> None:
    d_loss, g_loss = ADVERSARIAL_LOSSES[name]
    high, low = torch.full((4, 1, 2, 2), 2.0), torch.full((4, 1, 2, 2), -2.0)
    assert d_loss(high, low) < d_loss(low, high)
    assert g_loss(high) < g_loss(low)


def test_r1_penalty_by_hand_and_its_gradient() -> None:
    weight = torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1).requires_grad_()
    images = torch.randn(5, 3, 1, 1, requires_grad=True)
    penalty = r1_penalty((images * weight).sum(dim=(1, 2, 3)), images)
    torch.testing.assert_close(penalty, torch.tensor(14.0))  # 1 + 4 + 9, the same for every image
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach())


def test_r1_penalty_names_the_missing_grad() -> None:
    with pytest.raises(ValueError, match="requires_grad_"):
        r1_penalty(torch.zeros(2), torch.zeros(2, 3, 4, 4))


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    last_layer = nn.Parameter(torch.randn(3, 8))
    x, y = torch.randn(8), torch.randn(3)
    image = last_layer @ x
    reconstruction, adversarial = 2 / 3 * (image - y).detach(), torch.full((3,), 1 / 3)  # of mean square and mean
    weight = adaptive_weight(image, last_layer, reconstruction, adversarial)
    expected = torch.outer(reconstruction, x).norm() / (torch.outer(adversarial, x).norm() + 1e-4)
    torch.testing.assert_close(weight, expected)
    assert not weight.requires_grad
    image.sum().backward()  # the graph is still there
    assert last_layer.grad is not None


def test_adaptive_weight_is_clamped() -> None:
    last_layer = nn.Parameter(torch.ones(2))
    gradient = torch.ones(2)
    weight = adaptive_weight(1.0 * last_layer, last_layer, 1e9 * gradient, 0 * gradient, max_weight=50.0)
    assert weight.item() == 50.0


def test_adaptive_weight_of_gradients_too_small_for_float16() -> None:
    last_layer = nn.Parameter(torch.ones(4, dtype=torch.float16))
    weight = adaptive_weight(1 * last_layer, last_layer, torch.full((4,), 3e-9), torch.full((4,), 1e-3))
    torch.testing.assert_close(weight.float(), torch.tensor(6e-9 / (2e-3 + 1e-4)), rtol=1e-2, atol=0)


def test_a_loss_of_known_gradient() -> None:
    x = torch.randn(3, requires_grad=True)
    loss = 2 * with_gradient(1.0 * x, torch.tensor(5.0), torch.tensor([1.0, 2.0, 3.0]))
    loss.backward()
    assert loss.item() == 10.0 and x.grad.tolist() == [2.0, 4.0, 6.0]
