"""VIM: its loss, what it is fed, its validation, accumulation, and what a checkpoint holds."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import TinyExperiment
from prior_cases import Batch, loader, pieces, trainer
from torch import Tensor
from vim_cases import build, tiny_vim

from lightning_modules import vim as vim_module
from lightning_modules.base import Setting
from lightning_modules.networks import sampling
from lightning_modules.optimizer import build_optimizer, decay_of_matrices
from lightning_modules.vim import VIM
from lightning_modules.vim_parts import keep_tokens


def batch_of(size: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(32, (size, 64), generator=generator),
        "label": torch.randint(10, (size,), generator=generator),
    }


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training step without a trainer."""
    monkeypatch.setattr(VIM, "log", lambda *_, **__: None)
    monkeypatch.setattr(vim_module, "share_of_step", lambda *_: 1.0)


# ---- training


@pytest.mark.usefixtures("silent")
def test_it_overfits_one_batch_from_the_uniform_loss_on(tiny: TinyExperiment) -> None:
    options = ["model.gpt={dims: [1, 2, 32, 64], dropout: 0}", "model.optimizer={lr: 0.01, min_lr: 0.001}"]
    module, _ = build(tiny_vim(tiny, *options))
    config = module.config.optimizer
    optimizer = build_optimizer(decay_of_matrices(module.gpt, config), config)
    losses = []
    for _ in range(250):
        loss = module.training_step(batch_of(4), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(math.log(32), abs=0.1)
    assert losses[-1] < 0.2


@pytest.mark.usefixtures("silent")
def test_corrupted_inputs_and_clean_targets(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = build(tiny_vim(tiny, "model.keep_tokens=0.7"))
    batch = batch_of(200)
    before = batch["tokens"].clone()
    inputs, targets = [], []
    module.gpt.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    real = vim_module.token_loss
    monkeypatch.setattr(vim_module, "token_loss", lambda h, w, t: (targets.append(t), real(h, w, t))[1])
    module.training_step(batch, 0)
    (fed,), (target,) = inputs, targets
    assert torch.equal(target, before) and torch.equal(batch["tokens"], before)
    kept = (fed == before[:, :-1]).float().mean()
    assert kept == pytest.approx(0.7 + 0.3 / 32, abs=0.015), "a random token is the right one now and then"
    assert fed.min() >= 0 and fed.max() < 32
    assert keep_tokens(before, 1.0, 32) is before


@pytest.mark.usefixtures("silent")
def test_labels_are_dropped_in_training_alone(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_vim(tiny, "model.label_dropout=0.25"))
    batch, seen = batch_of(2000), []
    batch["tokens"] = batch["tokens"][:, :1].expand(-1, 64)
    module.gpt.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[1]))
    module.training_step(batch, 0)
    module.on_validation_start()
    module.validation_step(batch, 0)
    training, validation = seen
    dropped = training == module.gpt.no_class
    assert float(dropped.float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(training[~dropped], batch["label"][~dropped]) and torch.equal(validation, batch["label"])


@pytest.mark.usefixtures("silent")
def test_an_unconditional_model_sees_no_label(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_vim(tiny, "model.class_conditional=false"))
    assert module.gpt.num_classes == 0
    assert torch.isfinite(module.training_step(batch_of(4), 0))
    images, _, labels = module.sample([0, 11], seed=0)
    assert images.shape == (2, 3, 16, 16) and labels.tolist() == [0, 1]


@pytest.mark.usefixtures("silent")
def test_a_loss_that_is_not_finite_stops(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = build(tiny_vim(tiny))
    module._trainer = trainer()
    torch.nn.init.constant_(module.gpt.head.weight, float("nan"))
    with pytest.raises(
        FloatingPointError,
        match=r"step 0: the token loss is nan: the weights 'gpt\.head\.weight' are not .*; lower optimizer\.lr",
    ):
        module.training_step(batch_of(4), 0)


def test_accumulated_micro_batches_are_one_batch(tiny: TinyExperiment) -> None:
    """Ten images: steps of four, four and, of one micro-batch alone, two."""
    weights = []
    for size, accumulate in ((4, 1), (2, 2)):
        options = [f"model.optimizer.accumulate={accumulate}", "model.gpt.dropout=0"]
        module, _ = build(tiny_vim(tiny, *options))
        fit = trainer(max_steps=3, accumulate_grad_batches=accumulate)
        fit.fit(module, loader(pieces(batch_of(10), size)))
        assert fit.global_step == 3
        weights.append(module.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=2e-6)


# ---- validation


def test_bits_per_token_from_the_full_logits(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_vim(tiny, "model.generation.num_samples=0"))
    torch.nn.init.normal_(module.gpt.head.weight)
    batch = batch_of(7)
    module.eval()
    with torch.no_grad():
        logits = module.gpt.logits(module.gpt(batch["tokens"], batch["label"]))[:, :-1]  # (B, T, V)
        nats = F.cross_entropy(logits.transpose(1, 2).double(), batch["tokens"], reduction="none")  # (B, T)
    bits = nats / math.log(2)
    assert bits.mean() > 5.5, "worse than uniform, so not by chance"
    for size in (1, 3, 7):
        (found,) = trainer().validate(module, loader(pieces(batch, size)), verbose=False)
        assert found == {"bits_per_token/val": pytest.approx(float(bits.mean()), rel=1e-5)}
        torch.testing.assert_close(module.bits_by_position.double(), bits.mean(0), rtol=1e-5, atol=1e-5)
    assert module.protocols() == {"bits_per_token/val": "bits-per-token/teacher-forced/n7"}


def test_no_metric_depends_on_a_batch_size(tiny: TinyExperiment, tmp_path: Path) -> None:
    module, _ = build(tiny_vim(tiny, "model.generation.precision_recall=true"))
    generator = torch.Generator().manual_seed(0)
    module.generation.use_reference(tmp_path, [torch.rand(20, 3, 16, 16, generator=generator)], "x")
    found = []
    for size in (1, 5):
        module.config.generation.batch_size = 12 // size
        (values,) = trainer().validate(module, loader(pieces(batch_of(7), size)), verbose=False)
        found.append(values)
    assert set(found[0]) == set(module.protocols())
    assert set(found[0]) == {"bits_per_token/val", "fid", "is", "is_std", "precision", "recall"} | {
        "usage/generated",
        "reachable/generated",
    }
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_an_image_depends_on_its_number_alone(tiny: TinyExperiment) -> None:
    module, _ = build(tiny_vim(tiny))
    for layer in (module.gpt.start, module.gpt.head):
        torch.nn.init.normal_(layer.weight)
    images, tokens, labels = module.sample(list(range(13)), seed=3)
    assert images.abs().max() <= 1 and labels.tolist() == [i % 10 for i in range(13)]
    for size in (1, 5):
        for first in range(0, 13, size):
            ids = list(range(first, min(13, first + size)))
            few = module.sample(ids, seed=3)
            assert torch.equal(few[1], tokens[ids])
            torch.testing.assert_close(few[0], images[ids], rtol=0, atol=1e-5)
    assert not torch.equal(module.sample([0], seed=4)[1], tokens[:1])
    assert not torch.equal(module.sample([0], 3, torch.tensor([5]))[1], tokens[:1])
    numbers = [number for batch in fake_rank(module, 0, 1) for number in batch[0]]
    shared = [sorted(n for batch in fake_rank(module, rank, 2) for n in batch[0]) for rank in range(2)]
    assert numbers == list(range(12)) == sorted(shared[0] + shared[1])


def test_tokens_are_drawn_in_bf16(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = build(tiny_vim(tiny, "model.sampling.precision=bf16"))
    kinds = []

    def drawn(*arguments: Any) -> Tensor:
        kinds.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return sampling.generate(*arguments)

    monkeypatch.setattr(vim_module, "generate", drawn)
    assert module.sample([0, 1], seed=3)[1].shape == (2, module.gpt.num_tokens)
    module.sample([0, 1], seed=3, sampling=sampling.SamplingConfig())
    assert kinds == [torch.bfloat16, torch.float32] and module.config.sampling.id == "t1-bf16"


def fake_rank(module: VIM, rank: int, world_size: int) -> list[tuple[list[int], Tensor, Tensor, Tensor]]:
    class Trainer:
        global_rank, num_devices = rank, 1

    Trainer.world_size = world_size  # type: ignore[attr-defined]
    module._trainer = Trainer()  # type: ignore[assignment]
    try:
        return [*module.sample_images()]
    finally:
        module._trainer = None


# ---- tokenizer and classifier


def test_what_is_lent_stays_out_of_the_module(tiny: TinyExperiment) -> None:
    module, tokenizer = build(tiny_vim(tiny))

    class Scorer(torch.nn.Linear):
        id = "x"

    module.use_classifier(Scorer(3, 3))  # type: ignore[arg-type]
    assert {name.split(".")[0] for name in module.state_dict()} == {"gpt"}
    assert {name.split(".")[0] for name, _ in module.named_parameters()} == {"gpt"}
    module.train()
    assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
    with pytest.raises(ValueError, match="trained on tokens of tokenizer untrained, this one is other: name the right"):
        module.use_tokenizer(tokenizer, "other")
    checkpoint: dict[str, Any] = {}
    module.on_save_checkpoint(checkpoint)
    again = VIM(module.config, Setting(**checkpoint["sizes"]))
    again.load_state_dict(module.state_dict())
    again.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="trained on tokens of tokenizer untrained"):
        again.use_tokenizer(tokenizer, "other")
