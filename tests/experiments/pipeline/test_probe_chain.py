"""A probe on VIM on a tokenizer: two levels of upstream in the configuration, and the chain that trains them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from experiments.config.compose import RECIPES, load_experiment, parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import resolve_data, restore
from experiments.pipeline.prepare import prepare
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.records import read_record, same_experiment
from lightning_modules.linear_probe import LinearProbe
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.quantizers import NoQuantizerConfig

SHAPES = {"name": "shapes", "image_size": 16, "train_size": 40, "val_size": 12, "flip": True}
PROBES = sorted(RECIPES.glob("probe_*.yaml"))


@pytest.fixture
def probe(tiny: TinyExperiment) -> Any:
    """probe("key=value", ..., features="vim") -> a probe of two blocks, or of a tokenizer; 10 of 40 images held out."""

    def build(*overrides: str, features: str = "vim") -> Experiment:
        tokenizer = tiny("vqgan")
        upstream = {"recipe": "vqgan_cifar10.yaml", **tokenizer.identity()}
        vim = {
            "recipe": "vim_cifar10.yaml",
            "seed": 0,
            "data": SHAPES | {"batch_size": 8},
            "model": {
                "name": "vim",
                "class_conditional": False,
                "gpt": {"dims": [2, 2, 16, 32]},
                "encode_on_the_fly": False,
                "optimizer": {"warmup_steps": 0, "decay_from": 0},
            },
            "trainer": {"max_steps": 2},
            "upstream": upstream,
        }
        values: dict[str, Any] = {
            "data": SHAPES | {"batch_size": 10},
            "model": {"name": "linear_probe", "features": features, "heldout": 0.25},
            "trainer": {"max_steps": 7, "checkpoint_every": 5, "log_every": 1},
            "runtime": vars(tokenizer.runtime),
            "upstream": vim if features == "vim" else upstream,
        }
        return parse(merge(values, from_dotlist(overrides)), "probe.yaml")

    return build


def folder(experiment: Experiment) -> Path:
    return run_dir(experiment, "probe")


# ---- configuration


def test_two_levels_survive_a_record(probe: Any) -> None:
    experiment = probe()
    again = parse(experiment.identity(), "record")
    assert again.identity() == experiment.identity() and again.digest() == experiment.digest()
    assert same_experiment({"config": experiment.identity()}, experiment)
    assert experiment.upstream.upstream.model.name == "vqgan"


def test_a_change_at_any_level_is_another_experiment(probe: Any) -> None:
    changes = ["model.heldout=0.5", "upstream.model.gpt.bias=false", "upstream.upstream.model.code_dim=4"]
    experiments = [probe(), *map(probe, changes)]
    assert len({experiment.digest() for experiment in experiments}) == 4
    assert len({experiment.upstream.digest() for experiment in experiments}) == 3
    assert len({experiment.upstream.upstream.digest() for experiment in experiments}) == 2


def test_the_word_data_reaches_all_levels(probe: Any) -> None:
    experiment = resolve_data(probe("runtime.data_dir=elsewhere"), "cifar10")
    levels = [experiment, experiment.upstream, experiment.upstream.upstream]
    assert [level.data.name for level in levels] == ["cifar10"] * 3
    assert {level.runtime.data_dir for level in levels} == {"elsewhere"}


@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    comment = text.partition("\nupstream:")[0]
    assert "aper A" in comment and "Table 7" in comment and f"experiments.train experiments/{path.name}" in comment
    experiment = load_experiment(path)
    assert experiment.model.name == "linear_probe"


def test_recipes_share_their_tokenizer_and_leave_the_perceptual_loss_out() -> None:
    of_vim, of_tokenizer = (load_experiment(RECIPES / f"probe_{name}_cifar10.yaml") for name in ("vim", "vit_vqgan"))
    assert of_vim.upstream.upstream.digest() == of_tokenizer.upstream.digest()
    assert of_tokenizer.upstream.model.loss.perceptual == 0
    assert not of_vim.upstream.model.class_conditional


def test_overrides_of_all_sections_do_not_replace_the_recipe() -> None:
    keys = ["seed=1", "data.train_size=100", "model.gpt.dropout=0", "trainer.max_steps=3"]
    experiment = load_experiment(PROBES[0].with_name("probe_vim_cifar10.yaml"), [f"upstream.{k}" for k in keys])
    assert experiment.upstream.model.gpt.size == "mini" and experiment.upstream.model.gpt.dropout == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["upstream.model.class_conditional=true"],
            r"must not see the label .*upstream\.model\.class_conditional=false",
        ),
        (["model.blocks=[3]"], r"model\.blocks=\[3\]: the upstream VIM has 2 blocks"),
        (["model.features=codes"], r"model\.features=codes needs a tokenizer's recipe upstream, not vim's"),
        (["model.heldout=2"], r"model\.heldout=2\.0 must be between 0 and 1"),
        (["model.feature=codes"], r"unknown key 'model\.feature'; did you mean 'model\.features'\?"),
        (["data.image_size=32"], r"data\.image_size=32, but upstream\.data\.image_size=16"),
        (["upstream.upstream.model.codes=4"], r"upstream \(vim_.*upstream \(vqgan_.*unknown key 'model\.codes'"),
        (["upstream.upstream.recipe=7"], r"upstream\.recipe must name a recipe"),
    ],
)
def test_a_mistake_is_named(probe: Any, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        probe(*overrides)
    assert str(error.value).startswith("probe.yaml: ") and "\n" not in str(error.value)


def test_features_need_their_kind_of_upstream(probe: Any) -> None:
    with pytest.raises(ValueError, match=r"features=vim needs a recipe of vim upstream, not vqgan's"):
        probe("model.features=vim", features="codes")
    with pytest.raises(ValueError, match=r"quantizer 'none' has no codes"):
        codes = probe(features="codes")
        codes.model.check_upstream(replace(codes.upstream.model, codebook_size=0, quantizer=NoQuantizerConfig()))
    probe("upstream.model={class_conditional: true, label_dropout: 0.1}")  # it knows the start "no class"


def test_data_without_held_out_images_is_refused_before_any_training(
    probe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("nothing is trained"))
    with pytest.raises(ValueError, match=r"model\.heldout=0\.01 of 40 training images are 0"):
        train(experiment := probe("model.heldout=0.01"), "probe", folder(experiment))


# ---- runs


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    training_step = LinearProbe.training_step

    def stopping(self: LinearProbe, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        if self.trainer.global_step == step:
            raise ConnectionAbortedError("stopped")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(LinearProbe, "training_step", stopping)


def test_the_whole_chain(
    probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = probe()
    record = train(experiment, "probe", folder(experiment))
    assert capsys.readouterr().out.count("is trained first") == 2
    output_dir = Path(experiment.runtime.output_dir)
    assert len([*output_dir.glob("records/*.json")]) == 3

    blocks = [f"probe/{part}/block0{block}" for part in ("accuracy", "heldout") for block in (1, 2)]
    assert set(record["metrics"]) == set(record["protocols"]) == {"probe/accuracy", "probe/best_block", *blocks}
    assert all(0 <= value <= 100 for value in record["metrics"].values())
    assert record["parameters"] == 2 * (16 + 1) * 10
    how = "linear-probe/vim/no-class-start/mean-of-64-tokens"
    assert record["protocols"]["probe/accuracy"] == f"{how}/top1/val/n12/best-of-2-blocks-on-heldout-train-n10"
    best = record["metrics"]["probe/best_block"]
    assert record["metrics"]["probe/accuracy"] == record["metrics"][f"probe/accuracy/block0{best:.0f}"]
    assert read_record(output_dir / f"records/{experiment.digest()}.shapes.json") == record

    final = load_checkpoint(folder(experiment) / "checkpoints/final.ckpt")
    assert {name: tuple(value.shape) for name, value in final["state_dict"].items()} == {
        "weight": (2, 16, 10),
        "bias": (2, 1, 10),
    }
    with pytest.raises(ValueError, match="of model 'linear_probe', which cannot be restored without the model below"):
        restore(folder(experiment) / "checkpoints/final.ckpt")
    assert (folder(experiment) / "accuracy_by_block.png").stat().st_size > 5000
    tags = EventAccumulator(str(folder(experiment)), size_guidance={"images": 0}).Reload().Tags()
    assert tags["images"] == ["accuracy by block"] and {"loss/probe", "val/probe/accuracy"} <= set(tags["scalars"])
    assert {f"val/{block}" for block in blocks} <= set(tags["scalars"])

    # A run that was stopped ends where one that was not does; nothing upstream is trained again.
    other = probe("seed=1", "model.normalize=true")
    straight = train(other, "probe", tmp_path / "straight")
    (output_dir / f"records/{other.digest()}.shapes.json").unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(ConnectionAbortedError):
            train(other, "probe", tmp_path / "stopped")
    assert train(other, "probe", tmp_path / "stopped")["metrics"] == straight["metrics"]
    states = [
        load_checkpoint(tmp_path / name / "checkpoints/final.ckpt")["state_dict"] for name in ("straight", "stopped")
    ]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    assert "is trained first" not in capsys.readouterr().out

    # VIM's tokens are those of its own tokenizer, or none.
    upstream = experiment.upstream.upstream
    path = output_dir / "experiments" / run_dir(upstream, "vqgan_cifar10").name / "checkpoints/final.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["pre_quant.bias"] += 1
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="was trained on tokens of tokenizer"):
        prepare(probe("seed=2"))


def test_features_of_the_tokenizer(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Mean over the 8 x 8 tokens of what the frozen encoder gives, at three places; one tokenizer for all."""
    widths = {}
    for kind in ("encoder", "latents", "codes"):
        experiment = probe(features=kind)
        record = train(experiment, "probe", folder(experiment))
        assert set(record["metrics"]) == {"probe/accuracy", "probe/best_block", "probe/accuracy/block01"} | {
            "probe/heldout/block01"
        }
        assert record["protocols"]["probe/heldout/block01"] == (
            f"linear-probe/{kind}/mean-of-64-tokens/top1/heldout-train/n10"
        )
        module, _, images = prepare(experiment)
        tokenizer, batch = module.features.tokenizer, next(iter(images.val_dataloader()))
        backbone = tokenizer.encoder(batch["image"])  # (B, 8, 8, D)
        latents = tokenizer.pre_quant(backbone)
        codes = tokenizer.quantizer.lookup(tokenizer.encode(batch["image"]).indices)
        by_hand = {"encoder": backbone, "latents": latents, "codes": codes}[kind].mean((1, 2))
        torch.testing.assert_close(module.features(batch), by_hand[None])
        assert not tokenizer.training and not any(p.requires_grad for p in tokenizer.parameters())
        widths[kind] = module.weight.shape[1]
    assert widths == {"encoder": 16, "latents": 8, "codes": 8}
    assert capsys.readouterr().out.count("is trained first") == 1


def test_pixels_stand_on_no_model(probe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = probe("upstream=null", features="pixels")
    record = train(experiment, "probe", folder(experiment))
    assert record["protocols"]["probe/accuracy"].startswith("linear-probe/pixels/all/top1/val/n12/best-of-1-blocks-on")
    assert "is trained first" not in capsys.readouterr().out
    module, data, images = prepare(experiment)
    batch = next(iter(images.val_dataloader()))
    assert module.weight.shape == (1, 3 * 16 * 16, 10)
    assert torch.equal(module.features(batch)[0], batch["image"].flatten(1))
    data.setup("validate")
    heldout, _ = data.val_dataloader()
    seen = torch.cat([batch["image"] for batch in heldout])
    whole = torch.stack([images.train_set[i]["image"] for i in range(40)])
    assert len(seen) == 10, "and not mirrored"
    assert all(((whole - image).abs().amax((1, 2, 3)) == 0).any() for image in seen)
    with pytest.raises(ValueError, match="pixels needs no other model: set upstream=null"):
        probe(features="pixels")
