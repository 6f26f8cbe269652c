"""The token classifier: what the ViT is fed, its start, rates by layer, that it learns, and wrong options."""

import functools
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from classifier_cases import PLAIN, SMALL, tiny_classifier
from conftest import TinyExperiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from experiments.config.compose import load_experiment
from experiments.config.experiment import Experiment
from experiments.costs.counts import count_cost
from experiments.pipeline.prepare import prepare
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.records import read_record
from lightning_modules.base import Setting
from lightning_modules.frozen import freeze
from lightning_modules.networks import timm_vit
from lightning_modules.optimizer import build_optimizer
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.token_classifier import TokenClassifier, TokenClassifierConfig, normalized

READS = ("codes", "reconstructions", "images")
MAE = "vit_base_patch16_224.mae"


class FakeTokenizer(nn.Module):
    """Of 2 x 2 pixels a token: code i is i and 100 + i, and is decoded to a grey of i / 5 - 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    @property
    def quantizer(self) -> "FakeTokenizer":
        return self

    def lookup(self, indices: Tensor) -> Tensor:
        return torch.stack([indices, indices + 100], -1).float()

    def decode_indices(self, indices: Tensor) -> Tensor:
        grey = indices.repeat_interleave(2, 1).repeat_interleave(2, 2) / 5 - 1
        return grey[:, None].expand(-1, 3, -1, -1) + 0 * self.weight


def classifier(reads: str = "codes", options: dict[str, Any] = PLAIN, size: int = 8) -> TokenClassifier:
    """Of 4 x 4 tokens of two dimensions, or images of 8 x 8 pixels; three classes."""
    torch.manual_seed(0)
    tokenizer = None if reads == "images" else freeze(FakeTokenizer())
    setting = Setting(size, 3, 11, (size // 2, size // 2), tokenizer=tokenizer, code_dim=2)
    return TokenClassifier.build(TokenClassifierConfig(reads=reads, **options), setting)


def batch(count: int = 6, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "tokens": torch.randint(11, (count, 16), generator=generator),
        "image": torch.rand(count, 3, 8, 8, generator=generator) * 2 - 1,
        "label": torch.randint(3, (count,), generator=generator),
    }


# ---- what the ViT is fed


@pytest.mark.parametrize("reads", READS)
def test_logits_and_what_is_trained(reads: str) -> None:
    module, given = classifier(reads), batch()
    assert module(given).shape == (6, 3)
    assert module.network.patch_embed.num_patches == 16  # tokens and patches alike
    assert not any("tokenizer" in name for name in [*module.state_dict(), *dict(module.named_parameters())])
    module(given).square().mean().backward()
    assert all(p.grad is not None for p in module.network.parameters())


def test_codes_are_normalised_by_dimension_and_stay_in_place() -> None:
    module, given = classifier("codes").train(), batch()
    inputs, tokens = module.inputs(given), given["tokens"].float()
    standard = ((tokens - tokens.mean()) / tokens.std(correction=0)).view(6, 4, 4)
    torch.testing.assert_close(inputs, torch.stack([standard] * 2, 1), rtol=1e-3, atol=1e-3)


def test_reconstructions_are_images_like_others() -> None:
    given = batch()
    decoded = FakeTokenizer().decode_indices(given["tokens"].view(-1, 4, 4)).clamp(-1, 1)
    assert torch.equal(classifier("reconstructions").inputs(given), classifier("images").inputs({"image": decoded}))
    white = normalized(torch.ones(1, 3, 1, 1)).flatten()
    torch.testing.assert_close(white, (1 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]))


def test_the_linear_layer_in_place_of_the_patch_embedding() -> None:
    """Of each token's code alone, whatever its place."""
    embed = classifier("codes").network.patch_embed
    x = torch.randn(1, 2, 4, 4)
    by_hand = x.flatten(2).transpose(1, 2) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(embed(x), by_hand)


# ---- how it is trained


def test_rates_fall_with_depth_and_only_matrices_decay() -> None:
    network = classifier().network
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    for is_new in (False, True):
        groups = timm_vit.layer_groups(network, 2.0, 0.05, 0.5, new_patches=is_new)
        found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        assert found.keys() == dict(network.named_parameters()).keys()
        assert sum(len(group["params"]) for group in groups) == len(found)
        assert found["cls_token"] == found["pos_embed"] == (0.25, 0)  # 2 * 0.5^3
        assert found["patch_embed.proj.weight"] == (2.0 if is_new else 0.25, 0.05)
        assert found["patch_embed.proj.bias"] == (2.0 if is_new else 0.25, 0)
        assert found["blocks.0.attn.qkv.weight"] == (0.5, 0.05) and found["blocks.0.norm1.weight"] == (0.5, 0)
        assert found["blocks.1.mlp.fc2.weight"] == (1.0, 0.05)
        assert found["fc_norm.weight"] == (2.0, 0) and found["head.weight"] == (2.0, 0.05)
    optimizer = build_optimizer(groups, TokenClassifierConfig().optimizer)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25, 0.5, 1.0, 2.0}


def test_erased_and_mixed_batches_have_soft_targets() -> None:
    module, given = classifier("images", SMALL), batch()
    torch.manual_seed(0)
    before = module.inputs(given)
    inputs, targets = module.augmented(before.clone(), given["label"])
    assert inputs.shape == before.shape and not torch.equal(inputs, before)
    torch.testing.assert_close(targets.sum(1), torch.ones(6))
    assert targets.min() > 0 and ((targets > 0.1).sum(1) <= 2).all(), "smoothed, of one or two classes"
    with pytest.raises(ValueError, match="leaves each device 5 images"):
        module.augmented(before[:5], given["label"][:5])
    plain = classifier("images")
    assert plain.augmented(before, given["label"]) == (before, given["label"])


@pytest.mark.parametrize("reads", READS)
def test_it_learns_a_batch_by_heart(reads: str) -> None:
    module, given = classifier(reads).train(), batch()
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(given), given["label"])
        loss.backward()
        optimizer.step()
    assert loss < 0.05 and (module.eval()(given).argmax(1) == given["label"]).all()


# ---- pretrained weights


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """MAE's ViT-B of two blocks, in a file as MAE publishes it."""
    create = timm.create_model

    def small(name: str, pretrained: bool = False, **options: Any) -> Any:
        overlay = {"file": str(tmp_path / "mae.pth")} if pretrained else None
        return create(name, pretrained, pretrained_cfg_overlay=overlay, depth=2, **options)

    torch.manual_seed(3)
    source = small(MAE, num_classes=0)
    torch.save({"model": source.state_dict()}, tmp_path / "mae.pth")
    monkeypatch.setattr(timm, "create_model", small)
    return source


def test_the_start_is_maes_but_for_what_is_new(hub: Any) -> None:
    options = {"dims": [2, 12, 768]}
    images, codes = classifier("images", options, size=224), classifier("codes", options)
    for module in (images, codes):
        ours, theirs = module.network.state_dict(), hub.state_dict()
        assert torch.equal(ours["blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])
        assert torch.equal(ours["cls_token"], theirs["cls_token"])
        assert torch.equal(ours["fc_norm.weight"], torch.ones(768)) and ours["head.weight"].std() < 1e-4
    assert torch.equal(images.network.pos_embed, hub.pos_embed)
    assert torch.equal(images.network.patch_embed.proj.weight, hub.patch_embed.proj.weight)
    assert codes.network.patch_embed.proj.weight.shape == (768, 2, 1, 1) and codes.network.pos_embed.shape[1] == 17
    torch.testing.assert_close(  # 14 x 14 positions shrunk to 4 x 4
        codes.network.pos_embed[:, 1:].mean(1), hub.pos_embed[:, 1:].mean(1), atol=0.01, rtol=0
    )
    TokenClassifierConfig(**options).check_ready(10)
    with pytest.raises(ValueError, match=r"dims=\[12, 12, 768\], but model\.pretrained=.* has \[2, 12, 768\]"):
        TokenClassifierConfig().check_ready(10)
    with pytest.raises(ValueError, match=r"patch_size=8, but model\.pretrained=.* has 16"):
        TokenClassifierConfig(dims=[2, 12, 768], patch_size=8, reads="images").check_ready(10)


def test_weights_that_cannot_be_had_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=rf"{MAE}'.*hub.*set model\.pretrained='' to start from random weights"):
        TokenClassifierConfig().check_ready(10)
    with pytest.raises(ValueError, match="timm has no pretrained model of this name"):
        TokenClassifierConfig(pretrained="mae").check_ready(10)
    monkeypatch.undo()
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"pretrained=resnet18\.a1_in1k: is no vision transformer"):
        TokenClassifierConfig(pretrained="resnet18.a1_in1k").check_ready(10)


# ---- the whole run


@pytest.fixture
def tokens(tiny: TinyExperiment) -> Any:
    """tokens("key=value", ..., reads="codes") -> a classifier of the codes, or decoded images, of a tiny tokenizer."""

    return functools.partial(tiny_classifier, tiny)


def folder(experiment: Experiment) -> Path:
    return run_dir(experiment, "classifier")


@pytest.mark.parametrize("reads", READS)
def test_a_run_and_one_that_was_stopped(
    reads: str, tokens: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tokens(f"model.encode_on_the_fly={str(reads == 'codes').lower()}", reads=reads)
    record = train(experiment, "classifier", folder(experiment))
    assert set(record["metrics"]) == set(record["protocols"]) == {"classifier/accuracy", "loss/val"}
    assert 0 <= record["metrics"]["classifier/accuracy"] <= 100
    assert record["protocols"]["classifier/accuracy"] == "top1/vit-2x16/from-scratch/val/n12"
    path = Path(experiment.runtime.output_dir) / f"records/{experiment.digest()}.shapes.json"
    assert read_record(path) == record
    path.unlink()
    logged = set(EventAccumulator(str(folder(experiment))).Reload().Tags()["scalars"])
    assert {tag for charts in TokenClassifier.layout.values() for _, tags in charts.values() for tag in tags} <= logged
    with monkeypatch.context() as patch:
        step = TokenClassifier.training_step

        def stopping(self: TokenClassifier, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
            if self.trainer.global_step == 6:
                raise ConnectionAbortedError("stopped")
            return step(self, batch, batch_idx)

        patch.setattr(TokenClassifier, "training_step", stopping)
        with pytest.raises(ConnectionAbortedError):
            train(experiment, "classifier", tmp_path / "stopped")
    assert train(experiment, "classifier", tmp_path / "stopped")["metrics"] == record["metrics"]
    places = (folder(experiment), tmp_path / "stopped")
    final = [load_checkpoint(place / "checkpoints/final.ckpt")["state_dict"] for place in places]
    torch.testing.assert_close(*final, rtol=0, atol=0)


def test_codes_and_reconstructions_are_of_the_tokenizer(tokens: Any) -> None:
    train(
        experiment := tokens("model.encode_on_the_fly=false", reads="reconstructions"), "classifier", folder(experiment)
    )
    module, data, images = prepare(experiment)
    tokenizer = module.tokenizer.network
    given, plain = next(iter(data.val_dataloader())), next(iter(images.val_dataloader()))
    torch.testing.assert_close(module.inputs(given), normalized(tokenizer.reconstruct(plain["image"])))
    module = prepare(tokens("model.encode_on_the_fly=false")).module.eval()
    codes = tokenizer.encode(plain["image"]).quantized.movedim(-1, 1)
    torch.testing.assert_close(module.inputs(given), module.norm(codes))


def test_nothing_is_trained_for_what_cannot_be(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning.Trainer.fit", lambda *_, **__: pytest.fail("nothing is trained"))

    def offline(*args: object, **options: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match="hub is unreachable"):
        train(experiment := tokens(f"model.pretrained={MAE}"), "classifier", folder(experiment))
    monkeypatch.setattr("datamodules.shapes.ShapesDataModule.num_classes", 1)
    with pytest.raises(ValueError, match="token_classifier needs labels: the images have 1 class"):
        train(experiment := tokens(), "classifier", folder(experiment))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.reads=pixels", "reads='pixels' is none of codes, reconstructions, images"),
        ("model.reads=images", "reads=images needs no tokenizer: set upstream=null"),
        ("upstream=null", "needs `upstream: {recipe: FILE.yaml}`"),
        ("model.dims=[2,16]", r"model\.dims=\[2, 16\] must be blocks, heads and width"),
        ("model.dims=[2,3,16]", r"the width must be a multiple of the heads"),
        ("model.layer_decay=0", r"model\.layer_decay=0\.0 must be in \(0, 1\]"),
        ("model.mixup=-1", r"model\.mixup=-1\.0 and cutmix=1\.0 must be 0 \(off\) or more"),
        ("model.erasing=2", r"model\.erasing=2\.0 must be in \[0, 1\]"),
        ("model.drop_path=1", r"model\.drop_path=1\.0 must be in \[0, 1\)"),
        ("data.batch_size=5", r"data\.batch_size=5 must be even: mixup is of pairs of images"),
        ("model={reads: reconstructions, patch_size: 5}", r"patch_size=5 does not divide data\.image_size=16"),
    ],
)
def test_a_wrong_value_is_named(tokens: Any, override: str, message: str) -> None:
    tokens("data.batch_size=6")
    with pytest.raises(ValueError, match=message):
        tokens(override)


def test_costs(tokens: Any) -> None:
    """Encoding and decoding at every step count; the four rows have the same network."""
    below = count_cost(tokens().upstream).macs
    encoding = below["encoder"] + below["search"]
    costs = {
        (reads, fly): count_cost(tokens(f"model.encode_on_the_fly={fly}", reads=reads)).macs.get("tokenizer", 0)
        for reads in READS
        for fly in ("true", "false")
    }
    assert costs == {
        ("codes", "true"): encoding,
        ("codes", "false"): 0,
        ("reconstructions", "true"): encoding + below["decoder"],
        ("reconstructions", "false"): below["decoder"],
        ("images", "true"): 0,
        ("images", "false"): 0,
    }
    paper = count_cost(load_experiment("experiments/token_classifier_imagenet.yaml"))
    assert paper.parameters["ViT"] == 86_030_056 and 23.0e9 < paper.macs["ViT"] < 23.1e9
