"""The linear probe: which features it sees, heads that do not feel each other, and which images choose the block."""

from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_modules.linear_probe import LinearProbe, LinearProbeConfig
from lightning_modules.networks.gpt import GPT, GPTConfig
from lightning_modules.optimizer import OptimizerConfig, build_optimizer
from lightning_modules.probe_features import BlockFeatures, FrozenFeatures

BLOCKS, CLASSES, VOCABULARY = 3, 4, 11
Batch = dict[str, Tensor]


def transformer(num_classes: int = 0) -> GPT:
    """Three blocks of width 16 over 2 x 3 tokens, with dropout."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(dims=[BLOCKS, 2, 16, 32], dropout=0.5), VOCABULARY, (2, 3), num_classes)
    for parameter in gpt.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return gpt


def images(count: int = 32) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (count, 6), generator=generator)
    return {"tokens": tokens, "label": torch.randint(CLASSES, (count,), generator=generator)}


def train(probe: LinearProbe, batch: Batch, steps: int = 30) -> None:
    probe.train()
    optimizer = build_optimizer(probe.parameters(), probe.config.optimizer)
    for _ in range(steps):
        optimizer.zero_grad()
        probe.losses(batch).sum().backward()
        optimizer.step()


# ---- features


def test_features_are_the_mean_of_each_blocks_outputs_at_the_tokens() -> None:
    gpt, batch = transformer(), images()
    outputs: list[Tensor] = []
    features = BlockFeatures(gpt, [])
    for block in gpt.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    found = features(batch)
    assert len(outputs) == BLOCKS and found.shape == (BLOCKS, 32, 16)
    for mean, output in zip(found, outputs, strict=True):  # (B, 1 + 6, D); slot 0 is the start
        by_hand = sum(output[:, slot] for slot in range(1, 7)) / 6
        torch.testing.assert_close(mean, by_hand)
        assert (mean - output.mean(1)).abs().max() > 0.01
    assert (features.blocks, features.width, features.summary) == ([1, 2, 3], 16, "mean-of-6-tokens")


def test_the_last_token_counts_and_nothing_is_random() -> None:
    """All T tokens are fed, and dropout is off."""
    features, batch = BlockFeatures(transformer(), []), images()
    changed = {**batch, "tokens": batch["tokens"].clone()}
    changed["tokens"][:, -1] = (changed["tokens"][:, -1] + 1) % VOCABULARY
    assert torch.equal(features(batch), features(batch))
    assert ((features(batch) - features(changed)).abs().amax(2) > 1e-3).all()


def test_some_blocks_are_rows_of_all_and_later_ones_are_not_run() -> None:
    gpt, batch = transformer(), images()
    whole = BlockFeatures(gpt, [])(batch)
    gpt.blocks[2].register_forward_hook(lambda *_: pytest.fail("block 3 is not asked for"))
    selected = BlockFeatures(gpt, [2, 1])
    assert selected.blocks == [1, 2]
    assert torch.equal(selected(batch), whole[:2])
    assert torch.equal(BlockFeatures(gpt, [2])(batch), whole[1:2])


def test_labels_never_enter_vim() -> None:
    gpt, batch = transformer(CLASSES), images()
    features = BlockFeatures(gpt, [])
    others = {**batch, "label": (batch["label"] + 1) % CLASSES}
    assert torch.equal(features(batch), features(others))
    no_class = torch.full_like(batch["label"], CLASSES)
    starts = {
        name: [*gpt.hidden_states(batch["tokens"], ids)] for name, ids in [("no", no_class), ("is", batch["label"])]
    }
    torch.testing.assert_close(features(batch), torch.stack([x[:, 1:].mean(1) for x in starts["no"]]))
    assert (features(batch) - torch.stack([x[:, 1:].mean(1) for x in starts["is"]])).abs().max() > 0.01


# ---- heads


@pytest.mark.parametrize("normalize", [False, True])
def test_a_head_trained_with_the_others_is_the_head_trained_alone(normalize: bool) -> None:
    gpt, batch = transformer(), images()
    config = LinearProbeConfig(normalize=normalize, optimizer=OptimizerConfig(lr=0.03, weight_decay=0.1))
    together = LinearProbe(config, BlockFeatures(gpt, []), CLASSES)
    train(together, batch)
    for block in range(1, BLOCKS + 1):
        alone = LinearProbe(config, BlockFeatures(gpt, [block]), CLASSES)
        train(alone, batch)
        torch.testing.assert_close(together.weight[block - 1], alone.weight[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(together.bias[block - 1], alone.bias[0], rtol=1e-5, atol=1e-6)
    assert together.weight.abs().amax((1, 2)).min() > 0.1
    assert (together.weight[0] - together.weight[2]).abs().max() > 0.01


def test_accumulated_micro_batches_are_one_batch() -> None:
    """Ten images: steps of four, four and, of one micro-batch alone, two; twice."""
    whole, weights = images(10), []
    for size, accumulate in ((4, 1), (2, 2)):
        probe = LinearProbe(
            LinearProbeConfig(optimizer=OptimizerConfig(accumulate=accumulate)),
            BlockFeatures(transformer(), []),
            CLASSES,
        )
        pieces = [{key: value[i : i + size] for key, value in whole.items()} for i in range(0, 10, size)]
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = L.Trainer(
            accelerator="cpu", max_steps=6, accumulate_grad_batches=accumulate, enable_model_summary=False, **quiet
        )
        trainer.fit(probe, DataLoader(pieces, batch_size=None))  # type: ignore[arg-type]
        assert trainer.global_step == 6
        weights.append(probe.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=2e-6)


def test_vim_is_lent_and_stays_as_it_is() -> None:
    gpt = transformer()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    probe = LinearProbe(LinearProbeConfig(), BlockFeatures(gpt, []), CLASSES)
    train(probe, images())
    assert not gpt.training and all(p.grad is None and not p.requires_grad for p in gpt.parameters())
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())
    assert set(probe.state_dict()) == {"weight", "bias"}
    assert {name for name, _ in probe.named_parameters()} == {"weight", "bias"}


def test_normalized_features_have_mean_0_and_deviation_1() -> None:
    probe = LinearProbe(LinearProbeConfig(normalize=True), BlockFeatures(transformer(), []), 16)
    probe.weight.data = torch.eye(16).expand(BLOCKS, 16, 16).clone()  # logits are the features
    logits = probe.train()(images(256))
    torch.testing.assert_close(logits.mean(1), torch.zeros(BLOCKS, 16), atol=1e-4, rtol=0)
    torch.testing.assert_close(logits.std(1, correction=0), torch.ones(BLOCKS, 16), atol=1e-2, rtol=0)
    assert set(probe.state_dict()) > {"norm.running_mean", "norm.running_var"}


def test_the_loss_is_the_cross_entropy_of_each_head() -> None:
    probe, batch = LinearProbe(LinearProbeConfig(), BlockFeatures(transformer(), []), CLASSES), images()
    torch.nn.init.normal_(probe.weight)
    features = probe.features(batch)
    for loss, mean, weight in zip(probe.losses(batch), features, probe.weight, strict=True):
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(mean @ weight, batch["label"]))


# ---- which block


class Given(FrozenFeatures):
    """Two-dimensional features that come with the batch; the larger one is the predicted class."""

    name, blocks, width, summary = "given", [1, 2, 3], 2, "mean-of-6-tokens"

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1))

    def __call__(self, batch: Batch) -> Tensor:
        return batch["features"]


def right(counts: list[int], total: int) -> Batch:
    """A batch of class 0 of which each block gets so many right."""
    is_right = torch.arange(total) < torch.tensor(counts)[:, None]  # (3, B)
    return {"features": torch.stack([is_right, ~is_right], 2).float(), "label": torch.zeros(total, dtype=torch.long)}


def test_the_block_is_chosen_on_held_out_images_and_reported_on_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = LinearProbe(LinearProbeConfig(), Given(), 2)
    probe.weight.data[:] = torch.eye(2)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(probe, "log_dict", logged.update)
    for _ in range(2):  # the second validation starts from nothing
        probe.validation_step(right([1, 4, 2], 5), 0, 0)
        probe.validation_step(right([1, 2, 1], 3), 1, 0)
        probe.validation_step(right([1, 2, 10], 10), 0, 1)
        probe.on_validation_epoch_end()
    assert probe.best_block == logged["probe/best_block"] == 2
    expected = {f"probe/heldout/block{i:02}": 100 * n / 8 for i, n in enumerate([2, 6, 3], 1)}
    expected |= {f"probe/accuracy/block{i:02}": 100 * n / 10 for i, n in enumerate([1, 2, 10], 1)}
    expected |= {"probe/accuracy": 20, "probe/best_block": 2}
    assert {name: pytest.approx(float(value)) for name, value in logged.items()} == expected
    assert probe.history == {"probe/accuracy": [10, 20, 100], "probe/heldout": [25, 75, 37.5]}
    protocols = probe.protocols()
    assert set(protocols) == set(logged)
    how = "linear-probe/given/mean-of-6-tokens"
    assert protocols["probe/accuracy"] == f"{how}/top1/val/n10/best-of-3-blocks-on-heldout-train-n8"
    assert protocols["probe/accuracy/block03"] == f"{how}/top1/val/n10"
    assert protocols["probe/heldout/block03"] == f"{how}/top1/heldout-train/n8"


# ---- configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "image"}, r"features='image' is none of vim, encoder, latents, codes, pixels"),
        ({"heldout": 0.0}, r"heldout=0\.0 must be between 0 and 1"),
        ({"heldout": 1.0}, r"heldout=1\.0 must be between 0 and 1"),
        ({"blocks": [0]}, r"blocks=\[0\] must be different numbers from 1 on"),
        ({"blocks": [2, 2]}, r"blocks=\[2, 2\] must be different numbers"),
        ({"blocks": [1], "features": "codes"}, r"blocks=\[1\] are those of VIM, but model\.features=codes"),
        ({"optimizer": OptimizerConfig(gradient_clip=1.0)}, r"gradient_clip=1\.0: .* leave it at 0"),
    ],
)
def test_a_wrong_value_is_named(options: dict[str, Any], message: str) -> None:
    LinearProbeConfig().check()
    with pytest.raises(ValueError, match=message):
        LinearProbeConfig(**options).check()
