"""Flow matching: parity of loss, gradients and samples with SiT; a Gaussian in closed form."""

from importlib.util import find_spec

import pytest
import torch
from diffusion_vectors import public_dit
from parity_vectors import assert_close
from torch import Tensor

from lightning_modules import flow
from lightning_modules.denoising import GaussianNoise
from lightning_modules.flow import FlowSamplingConfig
from lightning_modules.networks import DiT, DiTConfig

CPU = torch.device("cpu")
needs_torchdiffeq = pytest.mark.skipif(find_spec("torchdiffeq") is None, reason="torchdiffeq, the extra `ode`")


def test_loss_and_gradients_equal_sit() -> None:
    network, io = public_dit("sit")
    assert_close(flow.noised(io["x1"], io["loss_t"], io["x0"]), io["x_t"])
    loss = flow.loss(network, io["x1"], io["y"], io["loss_t"], io["x0"])
    assert_close(loss, io["loss"])
    loss.mean().backward()
    assert_close(network.head.weight.grad, io["grad_final_linear_weight"])
    assert_close(network.patches.weight.grad, io["grad_patch_weight"])


def test_loss_at_the_start_is_1_plus_the_mean_square() -> None:
    torch.manual_seed(0)
    network = DiT(DiTConfig(size="micro", drop_sigma=True), 4, (8, 8))
    x1, noise = 0.5 * torch.randn(100, 4, 8, 8), torch.randn(100, 4, 8, 8)
    loss = flow.loss(network, x1, None, torch.rand(100), noise)
    assert loss.mean().item() == pytest.approx(1 + 0.25, abs=0.02)


@pytest.mark.parametrize("sampler", ["euler", "heun", pytest.param("dopri5", marks=needs_torchdiffeq)])
def test_guided_samples_equal_sit(sampler: str) -> None:
    network, io = public_dit("sit")
    config = FlowSamplingConfig(sampler=sampler, steps=8, guidance_scale=4.0, guided_channels=3)
    x = flow.sample(network, config, lambda: io["x_start_noise"][:2], io["cfg_y"][:2], 10)
    # SiT's step control sees the second half of the batch too, of which it keeps nothing.
    atol = 2e-3 if sampler == "dopri5" else 5e-5
    torch.testing.assert_close(x, io[f"ode_{sampler}_sample"], atol=atol, rtol=1e-4)


@needs_torchdiffeq
def test_dopri5_equals_sit() -> None:
    network, io = public_dit("sit")
    x = flow.sample(network, FlowSamplingConfig(sampler="dopri5"), lambda: io["x_start_noise"][:2], io["cfg_y"][:2], 10)
    assert_close(x, io["ode_dopri5_unguided_sample"])


MEAN, STD = 0.7, 0.4


def perfect(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """The velocity that is expected at x_t where the data are N(MEAN, STD^2)."""
    t = t[:, None, None, None]
    variance = t**2 * STD**2 + (1 - t) ** 2
    return MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)


@pytest.mark.parametrize(
    ("sampler", "steps", "tolerance"), [("euler", 250, 2e-2), ("heun", 125, 2e-4), ("heun", 250, 5e-5)]
)
def test_samplers_recover_a_gaussian(sampler: str, steps: int, tolerance: float) -> None:
    """The exact flow maps noise n to MEAN + STD n."""
    noise = GaussianNoise(0, range(4), (4, 16, 16), CPU)()
    x = flow.sample(perfect, FlowSamplingConfig(sampler=sampler, steps=steps), lambda: noise, None, 0)
    torch.testing.assert_close(x, MEAN + STD * noise, atol=tolerance, rtol=0)


def test_an_image_does_not_depend_on_its_batch() -> None:
    network, _ = public_dit("sit")
    config = FlowSamplingConfig(steps=4, guidance_scale=4.0)

    def images(ids: list[int]) -> Tensor:
        return flow.sample(network, config, GaussianNoise(1, ids, (6, 8, 8), CPU), torch.tensor(ids), 10)

    assert_close(torch.cat([images([0, 1]), images([2]), images([3, 4])]), images([0, 1, 2, 3, 4]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FlowSamplingConfig(sampler="rk4"), "sampler='rk4' is none of euler, heun, dopri5"),
        (FlowSamplingConfig(steps=0), "steps=0 must be at least 1"),
        (FlowSamplingConfig(rtol=0.0), "rtol=0.0 must be above 0"),
    ],
)
def test_bad_configs(config: FlowSamplingConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check()


def test_dopri5_without_its_library_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="sampler='dopri5' needs torchdiffeq"):
        FlowSamplingConfig(sampler="dopri5").check()


def test_ids_tell_samplers_apart() -> None:
    assert FlowSamplingConfig(guidance_scale=8, guided_channels=3).id == "heun125-guidance8-of3"
    assert FlowSamplingConfig(sampler="dopri5").id == "dopri5-atol1e-06-rtol0.001"
