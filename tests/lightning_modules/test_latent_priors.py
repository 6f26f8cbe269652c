"""LDM, DiT and SiT as LightningModules: losses, scaling, labels, guidance, validation, what is drawn and kept."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from latent_cases import NAMES, build, shaken, tiny_latents
from prior_cases import Batch, loader, pieces, trainer
from torch import Tensor

from experiments.config.identity import identity
from lightning_modules import latent_prior
from lightning_modules.base import Setting
from lightning_modules.latent_prior import LatentPrior
from lightning_modules.optimizer import build_optimizer

START = {"ldm": 1.0, "dit": 1.016, "sit": 1 + 1.0}  # loss of unit-variance latents; 1 + E[x^2] for SiT

each = pytest.mark.parametrize("name", NAMES)


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "latents": torch.randn(size, 8, 8, 8, generator=generator),
        "label": torch.randint(10, (size,), generator=generator),
    }


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step without a trainer."""
    monkeypatch.setattr(LatentPrior, "log", lambda *_, **__: None)
    monkeypatch.setattr(LatentPrior, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(latent_prior, "share_of_step", lambda *_: 1.0)


@each
@pytest.mark.usefixtures("silent")
def test_it_overfits_one_batch_from_the_known_loss_on(tiny: TinyExperiment, name: str) -> None:
    """The time and noise of a step are drawn anew, so the loss is that of many; guessing zero gives the first."""
    module, _ = build(tiny_latents(tiny, name, "model.label_dropout=0", "model.optimizer={lr: 0.003, min_lr: 0.003}"))
    batch, optimizer = batch_of(64), build_optimizer(module.network.parameters(), module.config.optimizer)
    with torch.no_grad():
        first = torch.stack([module.training_step(batch, 0) for _ in range(8)]).mean()
    assert float(first) == pytest.approx(START[name], abs=0.06)
    few, losses = {key: value[:2].repeat_interleave(8, 0) for key, value in batch.items()}, []
    for _ in range(200):
        loss = module.training_step(few, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert float(torch.stack(losses[-20:]).mean()) < 0.5 * START[name]


@pytest.mark.usefixtures("silent")
def test_labels_are_dropped_in_training_alone(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_latents(tiny, "sit", "model.label_dropout=0.25"))
    batch, seen = batch_of(1000), []
    module.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[2]))
    with torch.no_grad():
        module.training_step(batch, 0)
        module.on_validation_start()
        module.validation_step(batch, 0)
    training, validation = seen
    dropped = training == module.network.no_class
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.04)
    assert torch.equal(training[~dropped], batch["label"][~dropped]) and torch.equal(validation, batch["label"])


@each
@pytest.mark.usefixtures("silent")
def test_an_unconditional_model_sees_no_label(tiny: TinyExperiment, name: str) -> None:
    module, _ = build(tiny_latents(tiny, name, "model.class_conditional=false", "model.label_dropout=0"))
    assert module.network.num_classes == 0
    assert torch.isfinite(module.training_step(batch_of(4), 0))
    images, _, labels = module.sample([0, 11], seed=0)
    assert images.shape == (2, 3, 16, 16) and labels.tolist() == [0, 1]


def test_scaled_latents_are_those_of_unit_deviation(tiny: TinyExperiment) -> None:
    """By the first batch, for good; what is drawn is scaled back."""
    module, _ = build(tiny_latents(tiny, "sit", "model.scale_latents=true"))
    batches = [{"latents": 3 * b["latents"] * (1 + i), "label": b["label"]} for i in range(2) for b in [batch_of(4, i)]]
    trainer(max_steps=2).fit(module, loader(batches))
    assert float(module.scale) == pytest.approx(float(batches[0]["latents"].std(correction=0)), rel=1e-5)
    drawn = []
    module.sample_latents = lambda noise, *_: drawn.append(noise()) or drawn[0]  # type: ignore[method-assign,func-returns-value]
    quantizer, seen = module.tokenizer.quantizer, []  # type: ignore[union-attr]
    quantizer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    module.sample([0, 1], 0)
    torch.testing.assert_close(seen[0].movedim(-1, 1), drawn[0] * module.scale)


@each
def test_guidance_one_equals_none(tiny: TinyExperiment, name: str) -> None:
    """At scale 1 the network is called once a step; a model that is guided gives other latents."""
    module = shaken(build(tiny_latents(tiny, name))[0])
    noise = latent_prior.GaussianNoise
    labels, sampling, calls = torch.tensor([1, 2]), module.config.sampling, []
    module.network.register_forward_pre_hook(lambda _, arguments: calls.append(len(arguments[0])))

    def latents(scale: float) -> Tensor:
        chosen = type(sampling)(**vars(sampling) | {"guidance_scale": scale})
        return module.sample_latents(noise(0, [0, 1], (8, 8, 8), torch.device("cpu")), labels, chosen)

    plain = latents(1.0)
    assert set(calls) == {2}
    torch.testing.assert_close(latents(1.0 + 1e-9), plain, rtol=1e-3, atol=1e-4)
    assert set(calls) == {2, 4}
    assert (latents(4.0) - plain).abs().max() > 1e-3


@each
def test_an_image_depends_on_its_number_alone(tiny: TinyExperiment, name: str) -> None:
    module = shaken(build(tiny_latents(tiny, name))[0])
    images, tokens, labels = module.sample(list(range(7)), seed=3)
    assert images.abs().max() <= 1 and labels.tolist() == list(range(7)) and tokens.shape == (7, 64)
    for size in (1, 5):
        for first in range(0, 7, size):
            ids = list(range(first, min(7, first + size)))
            assert (module.sample(ids, seed=3)[1] == tokens[ids]).float().mean() > 0.99, "but for rounding"
    assert not torch.equal(module.sample([0], seed=4)[1], tokens[:1])


@each
def test_images_are_drawn_in_bf16(tiny: TinyExperiment, name: str) -> None:
    """The network alone: nearly the same codes, which are looked up in float32."""
    module = shaken(build(tiny_latents(tiny, name, "model.sampling.precision=bf16"))[0])
    kinds: set[torch.dtype] = set()
    module.network.register_forward_hook(lambda *call: kinds.add(call[2].dtype))
    tokens = module.sample(list(range(7)), seed=3)[1]
    assert kinds == {torch.bfloat16} and module.config.sampling.id.endswith("-bf16")
    kinds.clear()
    full = replace(module.config.sampling, precision="32")
    assert (module.sample(list(range(7)), seed=3, sampling=full)[1] == tokens).float().mean() > 0.9
    assert kinds == {torch.float32} and not full.id.endswith("bf16")
    assert identity(module.config.sampling).keys() - identity(full).keys() == {"precision"}


def test_latents_that_diverge_are_told_from_the_tokenizers(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deviation of what was drawn in the last measurement, before it is quantized."""
    module = shaken(build(tiny_latents(tiny, "sit"))[0])
    module.scale.fill_(2.0)
    monkeypatch.setattr(module, "sample_latents", lambda noise, *_: 10 * noise() + 1)
    module.sample([0, 1], seed=5)

    def measured(_: Any) -> dict[str, Tensor]:
        images = [module.sample(ids, seed=0) for ids in ([0, 1, 2], [3])]
        return {"fid": torch.tensor(float(len(images)))}

    monkeypatch.setattr(latent_prior.Prior, "measure_generation", measured)
    noise = latent_prior.GaussianNoise(0, range(4), (8, 8, 8), torch.device("cpu"))()
    found = module.measure_generation()
    assert found["latents/deviation/generated"].item() == pytest.approx(20 * float(noise.std(correction=0)), rel=1e-4)
    assert module.metric_protocols["latents/deviation/generated"].startswith("drawn/n")


@each
def test_no_metric_depends_on_a_batch_size(tiny: TinyExperiment, name: str, tmp_path: Path) -> None:
    module = shaken(build(tiny_latents(tiny, name))[0])
    generator = torch.Generator().manual_seed(0)
    module.generation.use_reference(tmp_path, [torch.rand(20, 3, 16, 16, generator=generator)], "x")
    batch, found = batch_of(7), []
    for size in (1, 5):
        module.config.generation.batch_size = 12 // size
        (values,) = trainer().validate(module, loader(pieces(batch, size)), verbose=False)
        found.append(values)
    assert set(found[0]) == set(module.protocols())
    terms = {"loss/noise/val", "loss/bound/val"} if name == "dit" else set()
    assert set(found[0]) == terms | {
        "loss/val",
        "latents/mean",
        "latents/deviation",
        "latents/deviation/generated",
        "fid",
        "is",
        "is_std",
        "usage/generated",
        "reachable/generated",
    }
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert found[0]["latents/mean"] == pytest.approx(float(batch["latents"].mean()), abs=1e-6)
    assert found[0]["latents/deviation"] == pytest.approx(float(batch["latents"].std(correction=0)), rel=1e-5)


@each
def test_what_is_lent_stays_out_of_the_module(tiny: TinyExperiment, name: str) -> None:
    module, tokenizer = build(tiny_latents(tiny, name))
    assert {key.split(".")[0] for key in module.state_dict()} == {"network", "scale"}
    with pytest.raises(
        ValueError, match="trained on latents of tokenizer untrained, this one is other: name the right"
    ):
        module.use_tokenizer(tokenizer, "other")
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    again = type(module)(module.config, Setting(**checkpoint["sizes"]))
    again.load_state_dict(module.state_dict())
    again.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained on latents of tokenizer untrained"):
        again.use_tokenizer(tokenizer, "other")


@pytest.mark.usefixtures("silent")
def test_a_latent_that_is_not_finite_stops(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_latents(tiny, "sit"))
    module._trainer = trainer()
    batch = batch_of(4)
    batch["latents"][2] = float("nan")
    with pytest.raises(FloatingPointError, match="step 0: the velocity loss is nan: 1 of the 4 images of its batch"):
        module.training_step(batch, 0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sit", "model.sampling.guidance_scale=2 model.label_dropout=0", "needs a model that was trained without its"),
        ("sit", "model.sampling.guided_channels=9", "guided_channels=9 is more than the 8 channels of the latents"),
        ("sit", "model.latents_stored=int8", "model.latents_stored='int8' is none of float32, float16"),
        ("ldm", "model.sampling.steps=1001", "steps=1001 is more than the 1000 timesteps"),
        ("sit", "model.sampling.precision=bf61", "model.sampling.precision='bf61' is none of 32, bf16"),
        ("ldm", "model.sampling.eta=1.5", r"model\.sampling\.eta=1\.5 must be in \[0, 1\]"),
        ("dit", "model.dit.size=huge model.dit.dims=[]", "model.dit.size='huge' is none of"),
    ],
)
def test_mistakes_are_named(tiny: TinyExperiment, name: str, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        tiny_latents(tiny, name, *change.split())
    assert "\n" not in str(error.value)
