"""The stage-1 loop: round trip, steps, the adversarial game, and each module on one batch until it knows it."""

from typing import Any

import lightning as L
import pytest
import torch
from conftest import TINY_LARGE_CODEBOOK, TOKENIZERS, TinyExperiment
from torch import Tensor, tensor
from torch.utils.data import DataLoader

from experiments.pipeline.build import build_model
from lightning_modules import losses
from lightning_modules.losses import l2_loss
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.tokenizer_losses import critic_terms, generator_terms

GAN = "model.loss.adversarial=0.5"
QUANTIZERS = {
    "vq": ["model.quantizer.name=vq"],
    "ema": ["model.quantizer.name=ema"],
    "factorized": ["model.quantizer.name=factorized", "model.quantizer.l2_norm=false"],
    "factorized_l2": ["model.quantizer.name=factorized", "model.quantizer.l2_norm=true"],
    "large_codebook": [
        "model.quantizer.name=large_codebook",
        f"model.quantizer.feature_dim={TINY_LARGE_CODEBOOK['feature_dim']}",
    ],
    "simvq": ["model.quantizer.name=simvq"],
    "ibq": ["model.quantizer.name=ibq"],
    "rotation": ["model.quantizer.name=rotation"],
    "fsq": ["model.quantizer.name=fsq", "model.codebook_size=240", "model.code_dim=3"],
    "lfq": ["model.quantizer.name=lfq", "model.codebook_size=256"],
}


@pytest.fixture
def build(tiny: TinyExperiment) -> Any:
    """build(model name, overrides...) -> the module, seeded; a large codebook holds random features."""

    def build(name: str = "vqgan", *overrides: str) -> Tokenizer:
        torch.manual_seed(0)
        module = build_model(tiny(name, *overrides))
        if isinstance(module.quantizer, LargeCodebook):
            module.quantizer.fill(torch.randn_like(module.quantizer.table))
        return module

    return build


def images(count: int = 4, seed: int = 0) -> Tensor:
    """Smooth images (B, 3, 16, 16) in [-1, 1]: 4 x 4 random colours, blown up."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(small, 16, mode="bilinear")


def batches(count: int, size: int = 4) -> list[dict[str, Tensor]]:
    return [{"image": images(size, seed)} for seed in range(count)]


def fit(
    module: Tokenizer, data: list[dict[str, Tensor]], steps: int, *callbacks: L.Callback, **options: Any
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return trainer


class Snapshots(L.Callback):
    """The state after every batch, and what was logged in it."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.states.append({name: value.clone() for name, value in module.state_dict().items()})
        self.logged.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(prefix)}


def same(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str = "") -> bool:
    a, b = part(a, prefix), part(b, prefix)
    assert a and a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- the tokenizer itself


@pytest.mark.parametrize("model", ["vqgan", "vit_vqgan"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_decoding_the_indices_is_the_forward_pass(build: Any, model: str, quantizer: str) -> None:
    module = build(model, *QUANTIZERS[quantizer])
    fit(module, batches(2), 2)
    module.eval()
    image = images(5, seed=9)
    with torch.no_grad():
        output = module(image)
        indices = module.encode(image).indices
        assert torch.equal(indices, output.indices) and indices.shape == (5, 8, 8)
        assert output.reconstruction.shape == image.shape
        assert torch.equal(module.decode_indices(indices), output.reconstruction)
        other = (indices + 1) % module.config.codebook_size
        assert not torch.equal(module.decode_indices(other), output.reconstruction)
    assert module.encoder.grid_size**2 == 64


@pytest.mark.parametrize("model", ["vqgan", "vit_vqgan"])
def test_logit_laplace_trains_and_its_image_is_the_mean(build: Any, model: str) -> None:
    module = build(model, "model.loss.logit_laplace=0.1")
    image, logged = images(), Snapshots()
    fit(module, [{"image": image}] * 40, 40, logged)
    losses = [values["loss/logit_laplace"] for values in logged.logged]
    assert losses[-1] < losses[0] - 0.3
    output = module.eval()(image)
    assert output.prediction.shape == (4, 6, 16, 16) and output.reconstruction.shape == image.shape
    mean = (torch.sigmoid(output.prediction[:, :3]) - 0.1) / 0.8 * 2 - 1
    torch.testing.assert_close(output.reconstruction, mean)
    assert torch.equal(module.decode_indices(output.indices), output.reconstruction)


# ---- steps


@pytest.mark.parametrize("accumulate", [1, 2])
def test_one_generator_forward_and_one_count_a_step(build: Any, accumulate: int) -> None:
    """With two optimizers stepping, Lightning's own count would be twice the number of steps."""
    module = build("vqgan", GAN, f"model.optimizer.accumulate={accumulate}")
    calls = {"encoder": 0, "decoder": 0}
    for name in calls:
        getattr(module, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    trainer = fit(module, batches(20), 5)
    assert module.step == trainer.global_step == 5
    assert calls == {"encoder": 5 * accumulate, "decoder": 5 * accumulate}
    for scheduler in module.lr_schedulers():
        assert scheduler.last_epoch == 5


def test_learning_rate_warms_up_and_follows_a_cosine(build: Any) -> None:
    module = build("vqgan", "model.optimizer={lr: 1.0e-2, min_lr: 1.0e-3, warmup_steps: 4}")
    rates: list[float] = []

    class Rates(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            rates.append(module.optimizers().param_groups[0]["lr"])

    fit(module, batches(8), 8, Rates())
    half = 0.5 + 0.5 * 2**-0.5  # (1 + cos(pi / 4)) / 2
    cosine = [1.0, half, 0.5, 1 - half]
    expected = [0.0025, 0.005, 0.0075, 0.01] + [1e-3 + 9e-3 * c for c in cosine]
    assert rates == pytest.approx(expected)


def test_two_micro_batches_make_one_batch(build: Any) -> None:
    wide = ["model.optimizer.eps=1e-3"]  # rounding would be the direction of Adam's first steps
    whole = build("vqgan", *wide)
    fit(whole, batches(2, size=8), 2)
    halves = build("vqgan", *wide, "model.optimizer.accumulate=2")
    fit(halves, [{"image": half} for batch in batches(2, size=8) for half in batch["image"].split(4)], 2)
    expected = whole.state_dict()
    for name, value in halves.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    fresh = build("vqgan", *wide).state_dict()
    assert not torch.allclose(expected["encoder.conv_in.weight"], fresh["encoder.conv_in.weight"], atol=1e-4)


def test_micro_batches_left_over_at_the_end_of_an_epoch_are_dropped(build: Any) -> None:
    """Three batches an epoch, two a step: the third must not leak into the next epoch's step."""
    data, option = batches(3), "model.optimizer.accumulate=2"
    module = build("vqgan", option)
    fit(module, data, 2)
    expected = build("vqgan", option)
    fit(expected, [*data[:2], *data[:2]], 2)
    assert same(module.state_dict(), expected.state_dict())


def test_a_step_of_more_batches_than_an_epoch_has_is_an_error(build: Any) -> None:
    """All of them would be left over, for ever."""
    with pytest.raises(ValueError, match=r"accumulate=4: an epoch has 3 batches"):
        fit(build("vqgan", "model.optimizer.accumulate=4"), batches(3), 2)


def test_what_is_not_quantized_uses_no_code(build: Any) -> None:
    """Two of an epoch's five steps wait: the usage is of the other three."""
    module = build("vqgan", "model.quantizer={init: latents, place_at: 2}")
    fit(module, batches(5), 5)
    assert module.epoch_tokens == 3 * 4 * 64 and module.epoch_usage["perplexity/epoch"] > 16


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run(build: Any, bad: float) -> None:
    data = batches(3)
    data[2]["image"][0, 0, 0, 0] = bad
    module = build("vqgan", "model.loss.quantizer=0")
    module.quantizer.vq_loss = lambda z, codes: z.new_zeros(())
    with pytest.raises(FloatingPointError, match=r"step 2: the l2 loss is (nan|inf): 1 of the 4 images of its batch"):
        fit(module, data, 3)


def test_a_discriminator_loss_that_is_not_finite_stops_the_run(build: Any) -> None:
    module = build("vqgan", GAN)
    module.discriminator_loss = lambda real, fake: real.sum() * torch.inf
    with pytest.raises(FloatingPointError, match=r"step 0: the discriminator loss is -?(inf|nan)"):
        fit(module, batches(1), 1)


# ---- the adversarial game


def test_discriminator_and_adversarial_start(build: Any) -> None:
    starts = ("model.loss.discriminator_start=2", "model.loss.adversarial_start=4")
    gan, plain = Snapshots(), Snapshots()
    module = build("vqgan", GAN, *starts)
    initial = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, batches(6), 6, gan)
    fit(build("vqgan"), batches(6), 6, plain)

    discriminators = [initial, *gan.states]
    changes = [not same(a, b, "discriminator.") for a, b in zip(discriminators, gan.states, strict=False)]
    assert changes == [False, False, True, True, True, True]
    for prefix in ("encoder.", "decoder."):
        equal = [same(a, b, prefix) for a, b in zip(gan.states, plain.states, strict=True)]
        assert equal == [True, True, True, True, False, False], prefix
    assert ["loss/discriminator" in values for values in gan.logged] == [False, False, True, True, True, True]
    assert ["weight/adversarial" in values for values in gan.logged] == [False, False, False, False, True, True]


def norm_at_last_layer(module: Tokenizer, loss: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, module.decoder.last_layer, retain_graph=True)
    return gradient


@pytest.mark.parametrize("adaptive", [True, False])
def test_adversarial_weight(build: Any, adaptive: bool) -> None:
    """Adaptive: the term's gradient at the last layer is 0.5 times as long as the reconstruction's."""
    module = build("vqgan", GAN, f"model.loss.adaptive_weight={adaptive}")
    image = images()
    output = module(image)
    loss = generator_terms(module, image, output, True, adaptive)["generator"]
    reconstruction = norm_at_last_layer(module, l2_loss(output.reconstruction, image))
    term = norm_at_last_layer(module, loss) - reconstruction
    adversarial = norm_at_last_layer(module, -module.discriminator(output.reconstruction).mean())
    weight = reconstruction.norm() / (adversarial.norm() + 1e-4) if adaptive else 1.0
    torch.testing.assert_close(term, 0.5 * weight * adversarial, rtol=1e-3, atol=1e-6)
    assert reconstruction.norm() / adversarial.norm() != pytest.approx(1, rel=0.1), "the case shows nothing"
    assert all(p.requires_grad for p in module.discriminator.parameters()), "frozen during the term, and only then"
    loss.backward()
    assert all(p.grad is None for p in module.discriminator.parameters())


@pytest.mark.parametrize("model", ["vqgan", "vit_vqgan"])
def test_the_balanced_gradient_is_that_of_the_plain_sum(build: Any, model: str) -> None:
    """Of every weight: the losses' gradients are taken at the prediction and walked back once."""
    options = ["model.loss.logit_laplace=0.1", "model.loss.l1=1", "model.loss.adaptive_weight=true"]
    module = build(model, GAN, *options)
    parameters = [p for name, p in module.named_parameters() if not name.startswith("discriminator")]
    gradients = []
    for weigh in (True, False):  # the second one by the weight that the first one found
        loss = generator_terms(module, image := images(), module(image), True, weigh)["generator"]
        gradients.append([loss.detach(), *torch.autograd.grad(loss, parameters)])
    for balanced, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(balanced, plain)


def test_under_logit_laplace_the_weight_is_that_of_the_means(build: Any) -> None:
    module = build("vqgan", GAN, "model.loss.logit_laplace=1", "model.loss.l2=0", "model.loss.adaptive_weight=true")
    output = module(image := images())
    generator_terms(module, image, output, True, True)
    losses_at = losses.logit_laplace_loss(output.prediction, image), -module.discriminator(output.reconstruction).mean()
    rows = [norm_at_last_layer(module, loss)[:3].norm() for loss in losses_at]  # the others make the scales
    torch.testing.assert_close(module.balance, rows[0] / (rows[1] + 1e-4))


def test_the_adaptive_weight_is_kept_between_its_steps(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed at the first step of the game, whatever its number, and at every third one from there."""
    module = build("vqgan", GAN, "model.loss.adaptive_every=3", "model.loss.adversarial_start=4")
    weights, logged = iter([2.0, 5.0]), Snapshots()
    monkeypatch.setattr(losses, "adaptive_weight", lambda *_: tensor(next(weights)))
    fit(module, batches(1) * 9, 9, logged)
    assert [values.get("weight/adversarial") for values in logged.logged] == [None] * 4 + [1, 1, 1, 2.5, 2.5]
    for values in logged.logged[4:]:
        plain = values["loss/l2"] + module.config.loss.quantizer * values["loss/quantizer"]
        term = values["weight/adversarial"] * values["loss/adversarial"]
        assert values["loss/generator"] == pytest.approx(plain + term, abs=1e-5)


def test_discriminator_loss_and_r1_on_its_steps(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = build("vqgan", GAN, "model.loss.r1=3.0", "model.loss.r1_every=4")
    real, fake = images(seed=1), images(seed=2)
    x = real.clone().requires_grad_()
    logits = module.discriminator(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x)
    penalty = gradient.square().sum((1, 2, 3)).mean()
    hinge = 0.5 * (torch.relu(1 - logits).mean() + torch.relu(1 + module.discriminator(fake)).mean())
    loss = critic_terms(module, real, fake, True)["critic"]
    torch.testing.assert_close(loss, hinge + 3.0 / 2 * 4 * penalty)
    torch.testing.assert_close(critic_terms(module, real, fake, False)["critic"], hinge)
    assert penalty > 0
    loss.backward()
    assert not real.requires_grad and all(p.grad is None for p in module.decoder.parameters())
    steps: list[int] = []
    monkeypatch.setattr(losses, "r1_penalty", lambda logits, _: (steps.append(module.step), logits.sum())[1])
    fit(module, batches(1) * 6, 6)
    assert steps == [0, 4]


def test_the_discriminator_learns_to_tell_them_apart(build: Any) -> None:
    module, logged = build("vqgan", GAN, "model.loss.adversarial_start=100"), Snapshots()
    fit(module, batches(1) * 30, 30, logged)
    assert logged.logged[-1]["loss/discriminator"] < 0.7 * logged.logged[0]["loss/discriminator"]
    assert logged.logged[-1]["discriminator/accuracy"] > 0.8


# ---- every module


OVERFIT = {  # where 80 steps need a hand
    "vqgan_ema": ["model.quantizer.decay=0.8"],
    "vit_vqgan": ["model.codebook_size=128", "model.quantizer.codebook_weight=4", "model.loss.quantizer=0.2"],
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_overfits_one_batch(build: Any, name: str) -> None:
    module, logged = build(name, *OVERFIT.get(name, [])), Snapshots()
    image = images(2)
    fit(module, [{"image": image}] * 90, 90, logged)
    first, last = logged.logged[0]["loss/l2"], logged.logged[-1]["loss/l2"]
    assert last < first / 10, f"{first:.4f} -> {last:.4f}"
    with torch.no_grad():
        error = (module.eval()(image).reconstruction - image).square().mean() / 4  # of pixels in [0, 1]
    psnr = -10 * torch.log10(error)
    assert psnr > 18, f"{psnr:.1f} dB"


@pytest.mark.parametrize("name", TOKENIZERS)
def test_bf16_autocast_keeps_codes_in_float32(build: Any, name: str) -> None:
    module = build(name).eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = module(images())
        assert module.encode(images()).quantized.dtype == torch.float32
        assert torch.equal(module.decode_indices(output.indices), output.reconstruction)


@pytest.mark.parametrize("game", ["hinge", "non_saturating"])
def test_bf16_trains_with_all_losses_in_float32(build: Any, game: str) -> None:
    """With R1 and the adaptive weight; within bf16's digits of the losses of float32, but not rounded to them."""
    options = [GAN, f"model.loss.adversarial_loss={game}", "model.loss.r1=1", "model.loss.adaptive_weight=true"]
    logged, dtypes = [], set()
    for precision in ("32-true", "bf16-mixed"):
        module, snapshots = build("vqgan", *options), Snapshots()
        judge, fool = module.discriminator_loss, module.adversarial_loss
        module.discriminator_loss = lambda *x, f=judge: (dtypes.update(logits.dtype for logits in x), f(*x))[1]
        module.adversarial_loss = lambda x, f=fool: (dtypes.add(x.dtype), f(x))[1]
        fit(module, batches(1), 1, snapshots, precision=precision)
        logged.append(snapshots.logged[0])
    exact, mixed = logged
    assert dtypes == {torch.float32} and mixed["loss/l2"] != exact["loss/l2"]
    for name in ("discriminator", "adversarial", "r1", "l2", "quantizer", "generator"):
        assert mixed[f"loss/{name}"] == pytest.approx(exact[f"loss/{name}"], rel=0.1, abs=0.02), name


def test_usage_is_counted_over_the_epoch(build: Any) -> None:
    module = build("vqgan")
    fit(module, batches(3), 5)  # one whole epoch and a piece
    assert module.epoch_tokens == 3 * 4 * 64
    assert set(module.epoch_usage) == {"usage/epoch", "reachable/epoch", "perplexity/epoch", "dead_codes/epoch"}
    used = round(module.epoch_usage["usage/epoch"] * 32 / 100)
    assert 1 <= used == 32 - module.epoch_usage["dead_codes/epoch"]
