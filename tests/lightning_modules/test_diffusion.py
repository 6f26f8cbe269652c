"""Diffusion: parity of schedules, losses, gradients and samples with LDM and DiT; a Gaussian in closed form."""

import pytest
import torch
from diffusion_vectors import public_dit, public_unet
from parity_vectors import assert_close
from torch import Tensor

from lightning_modules.denoising import Draw, GaussianNoise, Network
from lightning_modules.diffusion import Diffusion, DiffusionSamplingConfig, ScheduleConfig, sample, split
from lightning_modules.networks import DiT, DiTConfig

LDM = ScheduleConfig()
DIT = ScheduleConfig("linear", 1e-4, 0.02)
GUIDED_LDM = {"guidance_scale": 1.4}
GUIDED_DIT = {"guidance_scale": 4.0, "guided_channels": 3}
CPU = torch.device("cpu")


def recorded(start: Tensor, steps: Tensor) -> Draw:
    """The start, then the noise of each step, as the public samplers drew it."""
    return iter([start, *steps]).__next__


def assert_samples(actual: Tensor, expected: Tensor) -> None:
    """Random weights lead to values of hundreds: compared relative to the largest."""
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, atol=2e-6, rtol=0)


# ---- schedules


def test_schedules_are_the_public_ones() -> None:
    _, ldm = public_unet()
    _, dit = public_dit("dit")
    for table, expected in (
        (Diffusion(LDM).betas, ldm["betas"]),
        (Diffusion(LDM).alpha_bars, ldm["alphas_cumprod"]),
        (Diffusion(DIT).alpha_bars, dit["alphas_cumprod"]),
    ):
        torch.testing.assert_close(table, expected.double(), atol=1e-6, rtol=0)
    assert Diffusion(DIT).alpha_bars[-1].item() == pytest.approx(4.036e-5, rel=1e-3)


def test_respacing_of_b_is_dits() -> None:
    _, io = public_dit("dit")
    config = DiffusionSamplingConfig(sampler="ancestral", steps=250)
    process = config.process(DIT)
    assert torch.equal(process.timesteps, io["respaced_250_timesteps"])
    torch.testing.assert_close(process.betas, io["respaced_250_betas"], atol=1e-9, rtol=0)


def test_ddim_of_b_is_ldms() -> None:
    """200 steps: it ends at timestep 0, with some noise even there."""
    _, io = public_unet()
    process = DiffusionSamplingConfig().process(LDM)
    assert torch.equal(process.timesteps, io["ddim200_timesteps"])
    torch.testing.assert_close(process.previous, io["ddim200_alphas_prev"], atol=1e-6, rtol=0)
    torch.testing.assert_close(process.sigmas(1.0), io["ddim200_eta1_sigmas"], atol=1e-6, rtol=0)
    assert process.sigmas(1.0)[0] > 0.02


# ---- losses


def test_losses_and_gradients_equal_dit() -> None:
    network, io = public_dit("dit")
    diffusion = Diffusion(DIT)
    assert_close(diffusion.noised(io["x_start"], io["t"], io["noise"]), io["x_t"])
    losses = diffusion.losses(network, io["x_start"], io["y"], io["t"], io["noise"])
    assert_close(losses["noise"], io["loss_mse"])
    torch.testing.assert_close(losses["bound"], io["loss_vb"], atol=1e-4, rtol=1e-4)
    total = losses["noise"] + losses["bound"]
    torch.testing.assert_close(total, io["loss"], atol=1e-4, rtol=1e-4)
    total.mean().backward()
    for weight, name in (
        (network.head.weight, "final_linear_weight"),
        (network.blocks[1].attention.qkv.weight, "block1_qkv_weight"),
        (network.classes.weight, "label_table"),
        (network.patches.weight, "patch_weight"),
    ):
        assert_close(weight.grad, io[f"grad_{name}"])


def test_loss_and_gradients_equal_ldm() -> None:
    network, io = public_unet()
    diffusion = Diffusion(LDM)
    assert_close(diffusion.noised(io["x_start"], io["t"], io["noise"]), io["x_t"])
    losses = diffusion.losses(network, io["x_start"], io["y"], io["t"], io["noise"])
    assert losses.keys() == {"noise"}
    assert_close(losses["noise"].mean(), io["loss"])
    losses["noise"].mean().backward()
    value = network.down[0].transformer.cross_attention.v
    for weight, name in (
        (network.head.weight, "out_conv_weight"),
        (network.classes.weight, "class_embedding"),
        (value.weight, "attn2_to_v_weight"),
    ):
        torch.testing.assert_close(weight.grad, io[f"grad_{name}"], atol=1e-6, rtol=1e-4)


def test_posterior_equals_dit() -> None:
    network, io = public_dit("dit")
    diffusion, t = Diffusion(DIT), io["t"]
    noise, ranged = split(network(io["x"], t, io["y"]), 6)
    x0 = diffusion.denoised(io["x"], t, noise)
    assert_samples(x0, io["p_pred_xstart"])
    assert_close(diffusion.posterior_mean(x0, io["x"], t), io["p_mean"])
    assert_close(diffusion.log_variances(t, ranged), io["p_log_variance"])


def test_loss_at_the_start() -> None:
    """1 for the noise, and for DiT's bound 0.016 on average over t with latents of unit variance."""
    torch.manual_seed(0)
    network, t = DiT(DiTConfig(size="micro"), 4, (8, 8)), torch.arange(0, 1000, 2)
    x0, noise = torch.randn(2, len(t), 4, 8, 8)
    with torch.no_grad():
        losses = Diffusion(DIT).losses(network, x0, None, t, noise)
    assert losses["noise"].mean().item() == pytest.approx(1.0, abs=0.01)
    assert losses["bound"].mean().item() == pytest.approx(0.016, abs=0.003)
    assert losses["bound"][0].item() == pytest.approx(2.0, abs=0.3)


# ---- samples


@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_equals_ldm(eta: int) -> None:
    network, io = public_unet()
    config = DiffusionSamplingConfig(steps=5, eta=eta, **GUIDED_LDM)
    assert torch.equal(config.timesteps(1000), io["ddim5_timesteps"])
    noise = recorded(io["x_T"], io["step_noise"])
    assert_samples(sample(network, Diffusion(LDM), config, noise, io["sample_y"], 10), io[f"ddim5_eta{eta}_sample"])


@pytest.mark.parametrize("eta", [0, 1])
def test_ddim_equals_dit(eta: int) -> None:
    network, io = public_dit("dit")
    config = DiffusionSamplingConfig(steps=8, eta=eta, offset=0, **GUIDED_DIT)
    assert torch.equal(config.timesteps(1000), io[f"ddim8_eta{eta}_timesteps"])
    noise = recorded(io["x_T"][:2], io["step_noise"][:, :2])
    assert_samples(sample(network, Diffusion(DIT), config, noise, io["cfg_y"][:2], 10), io[f"ddim8_eta{eta}_sample"])


def test_ancestral_sampling_equals_dit() -> None:
    network, io = public_dit("dit")
    config = DiffusionSamplingConfig(sampler="ancestral", steps=8, **GUIDED_DIT)
    assert torch.equal(config.timesteps(1000), io["ddpm8_timesteps"])
    noise = recorded(io["x_T"][:2], io["step_noise"][:, :2])
    assert_samples(sample(network, Diffusion(DIT), config, noise, io["cfg_y"][:2], 10), io["ddpm8_sample"])


MEAN, STD = 0.7, 0.4  # of the data, a normal distribution


def perfect(schedule: ScheduleConfig) -> Network:
    """The noise that is expected in x_t."""
    alpha_bars = schedule.alpha_bars()

    def network(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        a = alpha_bars[t].float()[:, None, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * MEAN) / (a * STD**2 + 1 - a)

    return network


def perfect_with_variance(process: Diffusion) -> Network:
    """Also where the true variance of p(x_{t-1} | x_t) lies in DiT's range."""
    a = process.alpha_bars
    variance = process.log_variance.exp() + process.mean_x0**2 * STD**2 * (1 - a) / (a * STD**2 + 1 - a)
    share = (variance.log() - process.log_variance) / (process.betas.log() - process.log_variance)
    noise = perfect(process.schedule)

    def network(x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        ranged = (2 * share - 1).float()[torch.searchsorted(process.timesteps, t)][:, None, None, None]
        return torch.cat([noise(x, t, labels), ranged.expand_as(x)], dim=1)

    return network


@pytest.mark.parametrize("steps", [10, 250])
def test_ancestral_sampling_recovers_a_gaussian(steps: int) -> None:
    """Every step is exact where mean and variance are: 10 are as good as 250."""
    config = DiffusionSamplingConfig(sampler="ancestral", steps=steps)
    noise = GaussianNoise(0, range(64), (4, 16, 16), CPU)
    network = perfect_with_variance(config.process(DIT))
    x = sample(network, Diffusion(DIT), config, noise, None, 0)  # 65,536 numbers
    assert x.mean().item() == pytest.approx(MEAN, abs=0.006)
    assert x.std().item() == pytest.approx(STD, abs=0.004)


def test_ddim_recovers_a_gaussian() -> None:
    """With eta 0 its limit maps noise n to MEAN + STD n; with eta 1 only the distribution is known."""
    start, diffusion = GaussianNoise(0, range(16), (4, 16, 16), CPU)(), Diffusion(DIT)
    config = DiffusionSamplingConfig(steps=1000, eta=0.0, offset=0)
    x = sample(perfect(DIT), diffusion, config, lambda: start, None, 0)
    torch.testing.assert_close(x, MEAN + STD * start, atol=0.01, rtol=0)
    config = DiffusionSamplingConfig(steps=1000, eta=1.0, offset=0)
    x = sample(perfect(DIT), diffusion, config, GaussianNoise(0, range(16), (4, 16, 16), CPU), None, 0)
    assert x.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert x.std().item() == pytest.approx(STD, abs=0.01)


def test_an_image_does_not_depend_on_its_batch() -> None:
    network, _ = public_unet()
    config = DiffusionSamplingConfig(steps=5, **GUIDED_LDM)

    def images(ids: list[int]) -> Tensor:
        noise = GaussianNoise(1, ids, (4, 8, 8), CPU)
        return sample(network, Diffusion(LDM), config, noise, torch.tensor(ids), 10)

    together = images([0, 1, 2, 3, 4])
    assert_samples(torch.cat([images([0, 1]), images([2]), images([3, 4])]), together)


def test_ddim_with_an_offset_ends_with_noise() -> None:
    """LDM's last step: at eta 1 two draws of the last noise give two images, with a textbook's DDIM one."""
    starts = torch.zeros(1, 4, 8, 8), torch.ones(5, 1, 4, 8, 8)
    other = torch.cat([starts[1][:4], 2 * starts[1][4:]])

    def image(offset: int, steps: Tensor) -> Tensor:
        config = DiffusionSamplingConfig(steps=5, offset=offset)
        return sample(perfect(LDM), Diffusion(LDM), config, recorded(starts[0], steps), None, 0)

    assert torch.equal(image(0, starts[1]), image(0, other))
    assert not torch.equal(image(1, starts[1]), image(1, other))


# ---- errors and names


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ScheduleConfig("cosine"), "name='cosine' is none of sqrt_linear, linear"),
        (ScheduleConfig(first=0.0), "first=0.0 and last=0.0195"),
        (ScheduleConfig(first=0.5, last=0.1), "0 < first <= last < 1"),
        (ScheduleConfig(timesteps=1), "timesteps=1"),
        (DiffusionSamplingConfig(sampler="plms"), "sampler='plms' is none of ddim, ancestral"),
        (DiffusionSamplingConfig(steps=1), "steps=1 must be at least 2"),
        (DiffusionSamplingConfig(eta=1.5), r"eta=1.5 must be in \[0, 1\]"),
        (DiffusionSamplingConfig(offset=2), "offset=2 is neither 0 nor 1"),
        (DiffusionSamplingConfig(guided_channels=-1), "guided_channels=-1"),
    ],
)
def test_bad_configs(config: ScheduleConfig | DiffusionSamplingConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DiffusionSamplingConfig(steps=1001), "steps=1001 is more than the 1000 timesteps"),
        (DiffusionSamplingConfig(sampler="ancestral", steps=1001), "steps=1001 is more than the 1000 timesteps"),
        (DiffusionSamplingConfig(steps=300), "steps=300: equal strides give 250 of 1000 timesteps, not 300"),
        (DiffusionSamplingConfig(steps=1000), "steps=1000 with offset=1 ends at 1000, beyond timestep 999"),
    ],
)
def test_step_counts_that_cannot_be(config: DiffusionSamplingConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check_schedule(LDM)


def test_ids_tell_samplers_apart() -> None:
    assert DiffusionSamplingConfig(guidance_scale=1.4).id == "ddim200-eta1-offset1-guidance1.4"
    b = DiffusionSamplingConfig(sampler="ancestral", steps=250, guidance_scale=8, guided_channels=3)
    assert b.id == "ancestral250-guidance8-of3"
