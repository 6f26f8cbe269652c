import math

import pytest
import torch

from lightning_modules.losses.reconstruction import (
    l1_loss,
    l2_loss,
    logit_laplace_log_density,
    logit_laplace_loss,
    logit_laplace_mean,
)


def test_l1_and_l2_by_hand() -> None:
    image, reconstruction = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.5)
    reconstruction[0, 0] = -1.0
    torch.testing.assert_close(l1_loss(reconstruction, image), torch.tensor((0.5 + 0.5 + 1.0) / 3))
    torch.testing.assert_close(l2_loss(reconstruction, image), torch.tensor((0.25 + 0.25 + 1.0) / 3))


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 0.8])
def test_density_integrates_to_one(mean: float, scale: float) -> None:
    logit = torch.linspace(-30, 30, 600_001, dtype=torch.float64)  # x = sigmoid(logit) covers (0, 1), dense at its ends
    x = torch.sigmoid(logit)
    density = logit_laplace_log_density(x, torch.tensor(mean), torch.tensor(scale, dtype=torch.float64).log()).exp()
    # float64's 1 - x is exact to 1e-16 only, so the far right, where it matters, is left out.
    inside = logit < 25
    torch.testing.assert_close(
        torch.trapezoid(density[inside], x[inside]), torch.tensor(1.0, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_loss_by_hand() -> None:
    image = torch.full((1, 3, 1, 1), -1.0)  # pixel 0, x = 0.1
    prediction = torch.zeros(1, 6, 1, 1)  # mu = 0, b = 1
    expected = math.log(2 * 0.1 * 0.9) + math.log(9)  # ln(2 b x (1 - x)) + |ln(0.1 / 0.9) - 0|
    torch.testing.assert_close(logit_laplace_loss(prediction, image), torch.tensor(expected))


def test_the_channels_are_means_and_log_scales() -> None:
    with pytest.raises(ValueError, match="3 channels, not 6"):
        logit_laplace_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))


def test_the_best_mean_is_the_image() -> None:
    """Fitting a prediction to an image by this loss alone gives the image back."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 4, 4) * 2 - 1
    prediction = torch.zeros(1, 6, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([prediction], lr=0.05)
    start = logit_laplace_loss(prediction, image).item()
    for _ in range(200):
        optimizer.zero_grad()
        loss = logit_laplace_loss(prediction, image)
        loss.backward()
        optimizer.step()
    assert loss.item() < start - 1
    assert prediction[:, 3:].mean() < -1  # the predicted scale shrinks with the error
    torch.testing.assert_close(logit_laplace_mean(prediction.detach()), image, atol=0.1, rtol=0)


def test_mean_inverts_the_mapping() -> None:
    image = torch.rand(2, 3, 4, 4) * 2 - 1
    mean = torch.logit(0.8 * (image + 1) / 2 + 0.1)
    prediction = torch.cat([mean, torch.randn_like(mean)], dim=1)
    torch.testing.assert_close(logit_laplace_mean(prediction), image)
