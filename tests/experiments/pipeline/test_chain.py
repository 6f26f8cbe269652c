"""Runs on top of other runs: what is trained, what is reused, identity, errors, resuming, evaluation."""

import json
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from PIL import Image
from vim_cases import build, tiny_vim

import experiments.evaluate
import experiments.sample
from experiments.config.compose import load_experiment, parse
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of
from experiments.pipeline import token_writer
from experiments.pipeline.build import build_data, resolve_data, restore, restore_tokenizer
from experiments.pipeline.encode import EncodedImages
from experiments.pipeline.evaluation import evaluate, use_reference
from experiments.pipeline.prepare import prepare
from experiments.pipeline.training import train, train_upstream
from experiments.pipeline.upstream import checkpoint_below, output_dir_of, run_dir, upstream_of
from experiments.runtime import progress
from experiments.runtime.records import Record
from experiments.runtime.trainer import build_trainer
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.vim import VIM

RECIPE = Path(__file__).parents[3] / "experiments/vim_cifar10.yaml"
NO_CODES = {"quantizer": {"name": "none"}, "codebook_size": 0}
NO_IMAGES = "model.generation.num_samples=0"


def fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of the modules that are trained from now on."""
    trained: list[str] = []
    fit = L.Trainer.fit
    monkeypatch.setattr(L.Trainer, "fit", lambda s, m, *a, **k: (trained.append(type(m).__name__), fit(s, m, *a, **k)))
    return trained


def own_dir(experiment: Experiment) -> Path:
    return run_dir(experiment, "vim")


# ---- what is trained


def test_the_folder_of_a_run_tells_codebook_size_dimension_and_seed(tiny: TinyExperiment) -> None:
    """The tokenizer's size for what stands on it, and the run's own seed."""
    experiment = tiny_vim(tiny, "seed=3", "upstream.model.codebook_size=48")
    folder = Path(experiment.runtime.output_dir) / "experiments"
    own, below = (digest_of([digest, "shapes"]) for digest in (experiment.digest(), experiment.upstream.digest()))
    dim = experiment.tokenizer.code_dim
    assert own_dir(experiment) == folder / f"vim_k48_d{dim}_s3_{own}"
    assert run_dir(experiment.upstream, "vqgan").name == f"vqgan_k48_d{dim}_s0_{below}"


def test_a_batch_larger_than_the_data_is_named_before_the_tokenizer_is_trained(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = fits(monkeypatch)
    for flip, batch_size in (("false", 17), ("true", 33)):  # 16 images, in two views where they are flipped
        experiment = tiny_vim(tiny, NO_IMAGES, f"data.flip={flip}", f"data.batch_size={batch_size}")
        with pytest.raises(ValueError, match=f"do not fill one batch of data.batch_size={batch_size}"):
            train(experiment, "vim", own_dir(experiment))
    assert trained == []


def test_only_what_is_missing_is_trained(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment, trained = tiny_vim(tiny, NO_IMAGES, "data.flip=true"), fits(monkeypatch)
    record = train(experiment, "vim", own_dir(experiment))
    assert trained == ["VQGAN", "VIM"]
    assert "vqgan_cifar10.yaml is trained first: " in capsys.readouterr().out
    assert set(record["metrics"]) == {"bits_per_token/val"} == set(record["protocols"])
    assert record["config"] == experiment.identity()
    assert train(experiment, "vim", own_dir(experiment)) == record and len(trained) == 2

    # another run on the same tokenizer
    with monkeypatch.context() as patch:
        patch.setattr(token_writer, "encode_batch", lambda *_: pytest.fail("the tokens are there"))
        other = train(tiny_vim(tiny, NO_IMAGES, "data.flip=true", "seed=1"), "vim", own_dir(experiment) / "other")
    assert trained == ["VQGAN", "VIM", "VIM"]
    assert other["metrics"] != record["metrics"]

    # the tokenizer's checkpoint is gone, its record is not
    upstream = replace(experiment.upstream, runtime=experiment.runtime)
    shutil.rmtree(run_dir(upstream, experiment.upstream_name))
    shutil.rmtree(own_dir(experiment))
    for path in Path(experiment.runtime.output_dir).glob(f"records/{experiment.digest()}.*"):
        path.unlink()
    again = train(experiment, "vim", own_dir(experiment))
    assert trained[3:] == ["VQGAN", "VIM"]
    assert again["metrics"] == record["metrics"]


def test_encoding_at_every_step_gives_the_tokens_of_the_cache(tiny: TinyExperiment) -> None:
    experiment = tiny_vim(tiny, NO_IMAGES)
    train_upstream(experiment)
    cached, encoded = prepare(experiment), prepare(tiny_vim(tiny, NO_IMAGES, "model.encode_on_the_fly=true"))
    assert isinstance(encoded.data, EncodedImages)
    for name in ("train_dataloader", "val_dataloader"):
        for kept, image in zip(getattr(cached.data, name)(), getattr(encoded.data, name)(), strict=True):
            made = encoded.data.on_after_batch_transfer(image, 0)
            assert torch.equal(kept["tokens"], made["tokens"]) and torch.equal(kept["label"], made["label"])
    for key, value in cached.module.state_dict().items():
        assert torch.equal(value, encoded.module.state_dict()[key])


# ---- identity


def test_the_digest_is_of_all_but_runtime(tiny: TinyExperiment) -> None:
    def digest(*overrides: str, upstream: list[str] | None = None) -> str:
        return tiny_vim(tiny, *overrides, upstream=upstream).digest()

    first = digest()
    assert digest("runtime.num_workers=3", "runtime.output_dir=elsewhere") == first
    assert digest("model.label_dropout=0.0") == first, "a default that is stated"
    changes = [["seed=1"], ["model.label_dropout=0.1"], ["data.flip=true"], ["trainer.max_steps=4"]]
    upstreams = [["seed=1"], ["model.code_dim=4"], ["data.train_size=17"]]
    others = [digest(*change) for change in changes] + [digest(upstream=change) for change in upstreams]
    assert len({first, *others}) == 1 + len(others)
    experiment = tiny_vim(tiny, "seed=3")
    assert parse(experiment.identity(), "record").digest() == experiment.digest()
    assert resolve_data(experiment, "shapes").digest() == experiment.digest()


def test_the_recipe_and_changes_of_its_upstream() -> None:
    changes = ["quantizer.name=fsq", "codebook_size=1000", "code_dim=4"]
    experiment = load_experiment(RECIPE, [f"upstream.model.{change}" for change in changes])
    assert experiment.upstream_name == "vit_vqgan_cifar10"
    assert experiment.upstream.model.quantizer.name == "fsq" and experiment.upstream.model.code_dim == 4
    assert experiment.model.generation.acceptance == [0.5, 0.25]


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upstream": None}, "model 'vim' needs `upstream: {recipe: FILE.yaml}`"),
        ({"upstream": {}}, "upstream.recipe must name a recipe"),
        ({"upstream": {"recipe": "vqgan_cifar.yaml"}}, "no such file; did you mean vqgan_cifar10.yaml"),
        (
            {"upstream": {"recipe": "vqgan_cifar10.yaml", "model": {"cod_dim": 1}}},
            r"upstream \(vqgan_cifar10.yaml\): .*c",
        ),
        ({"upstream": {"recipe": RECIPE.name}}, "'vim' needs a tokenizer's recipe upstream, not vim's"),
        (
            {
                "upstream": {
                    "recipe": "vqgan_cifar10.yaml",
                    "model": {"quantizer": {"name": "none"}, "codebook_size": 0},
                }
            },
            "quantizer 'none' has no codes: its images have no tokens",
        ),
        ({"recipe": "x.yaml"}, "unknown key 'recipe'; did you mean 'upstream.recipe'"),
        ({"model": {"name": "vqgan"}}, "model 'vqgan' stands on no other model: leave out `upstream`"),
        ({"data": {"image_size": 64}}, "data.image_size=64, but upstream.data.image_size=32"),
        ({"model": {"label_dropout": 2}}, r"label_dropout=2.0 must be in \[0, 1\]"),
        ({"model": {"sampling": {"guidance_scale": 2}}}, "guidance_scale=2.0 needs a model that was trained without"),
        ({"model": {"sampling": {"temperature": 0}}}, "^x: model.sampling.temperature=0.0 must be above 0"),
        ({"model": {"class_conditional": False, "label_dropout": 0.1}}, "label_dropout needs model.class_conditional"),
        (
            {"model": {"class_conditional": False, "generation": {"num_samples": 9, "acceptance": [0.5]}}},
            "acceptance needs model.class_conditional=true",
        ),
        ({"model": {"optimizer": {"decay": "step"}}}, "^x: model.optimizer.decay='step' is none of exponential"),
        (
            {"model": {"optimizer": {"name": "adafactor", "betas": [0.9, 0.95]}}},
            r"betas=\[0.9, 0.95\] has no effect on adafactor: set it to \[0.9, 0.96\]",
        ),
        ({"model": {"gpt": {"size": "huge"}}}, "^x: model.gpt.size='huge' is not one of micro"),
        (
            {
                "data": {"name": "image_folder", "image_size": 32, "random_crop": True},
                "model": {"encode_on_the_fly": False},
            },
            "random_crop needs model.encode",
        ),
        (
            {
                "data": {"name": "image_folder", "image_size": 32, "random_crop": False, "augment": "mae"},
                "model": {"encode_on_the_fly": False},
            },
            r"data\.augment needs model\.encode",
        ),
    ],
)
def test_mistakes_are_found_before_the_work(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {
        "data": {"name": "cifar10"},
        "model": {"name": "vim"},
        "upstream": {"recipe": "vqgan_cifar10.yaml"},
    }
    for key, value in change.items():
        values[key] = {**values[key], **value} if key in ("data", "model") else value
    if values["upstream"] is None:
        del values["upstream"]
    with pytest.raises(ValueError, match=message) as error:
        parse(values, "x")
    assert "\n" not in str(error.value)


def test_a_vim_is_no_tokenizer(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny_vim(tiny)
    path, module = tmp_path / "vim.ckpt", build(experiment)[0]
    content: dict[str, Any] = {"experiment": experiment.identity(), "state_dict": module.state_dict()}
    module.on_save_checkpoint(content)
    torch.save(content, path)
    again, restored = restore(path)
    assert again.identity() == experiment.identity() and restored.gpt.grid_size == (8, 8)
    with pytest.raises(ValueError, match=r"vim\.ckpt: holds a 'vim', not a tokenizer"):
        restore_tokenizer(path)
    with pytest.raises(ValueError, match=r"vim\.ckpt: the weights do not fit model 'vim'"):
        restore(path, {"model": {"gpt": {"dims": [2, 2, 16, 32]}}})


# ---- stopping and going on


@pytest.mark.parametrize(
    "options", [["trainer.checkpoint_every=4"], ["trainer.checkpoint_every=5", "trainer.weight_ema=0.5"]]
)
def test_a_continued_run_is_bit_equal(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    """Four batches an epoch; with dropout, dropped labels, random tokens and two views, all of which draw numbers."""
    random = ["model.label_dropout=0.3", "model.keep_tokens=0.8", "data.flip=true", "model.optimizer.warmup_steps=3"]
    experiment = tiny_vim(tiny, NO_IMAGES, "trainer.max_steps=7", *random, *options)
    straight = train(experiment, "vim", tmp_path / "a")
    expected = load_checkpoint(tmp_path / "a/checkpoints/final.ckpt")
    for path in Path(experiment.runtime.output_dir).glob(f"records/{experiment.digest()}.*"):
        path.unlink()
    step = VIM.training_step

    def stopping(self: VIM, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 6:
            raise ConnectionAbortedError("stopped")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VIM, "training_step", stopping)
        with pytest.raises(ConnectionAbortedError):
            train(experiment, "vim", tmp_path / "b")
    assert [file.name for file in (tmp_path / "b/checkpoints").iterdir()] == ["last.ckpt"]
    record = train(experiment, "vim", tmp_path / "b")
    assert record["metrics"] == straight["metrics"]
    found = load_checkpoint(tmp_path / "b/checkpoints/final.ckpt")
    assert found["global_step"] == 7 and {name.split(".")[0] for name in found["state_dict"]} == {"gpt"}
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


def test_images_are_generated_with_averaged_weights(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny_vim(tiny, "trainer.weight_ema=0.6", "trainer.validate_every=3")
    module, _ = build(experiment)
    seen: list[torch.Tensor] = []
    sample = module.sample_images
    module.sample_images = lambda: (seen.append(module.gpt.head.weight.clone()), sample())[1]  # type: ignore[method-assign]
    images, trainer = build_data(experiment), build_trainer(experiment, module, tmp_path)
    use_reference(trainer, module, images, tmp_path)
    data = EncodedImages(images, module.tokenizer)  # type: ignore[arg-type]
    trainer.fit(module, data)
    assert len(seen) == 1 and torch.equal(seen[0], module.gpt.head.weight), "which are the averaged ones at the end"


def test_the_images_of_an_evaluation_are_counted(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    train(tiny_vim(tiny, "model.generation.num_samples=17", "model.generation.acceptance=[]"), "vim", tmp_path / "run")
    assert "  image 17/17 " in capsys.readouterr().out


# ---- evaluation


def run_evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["evaluate", *command, "--json", "runtime.accelerator=cpu"])
    experiments.evaluate.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_evaluation_repeats_the_record(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_vim(tiny, "model.generation.acceptance=[0.5]", "model.generation.num_samples=10")
    record: Record = train(experiment, "vim", own_dir(experiment))
    generation = {"fid", "is", "is_std", "usage/generated", "reachable/generated"}
    names = generation | {f"{name}/accept-0.5" for name in generation} | {"bits_per_token/val"}
    assert set(record["metrics"]) == names == set(record["protocols"])
    assert record["metrics"]["fid"] != record["metrics"]["fid/accept-0.5"]
    accepted = record["protocols"]["fid/accept-0.5"]
    assert "/generated-vs-train16/n10/uint8/t1/accept-0.5-by-efficientnet-lite0@64px-head-top1-" in accepted

    checkpoint = own_dir(experiment) / "checkpoints/final.ckpt"
    assert output_dir_of(checkpoint) == experiment.runtime.output_dir
    capsys.readouterr()
    trained = fits(monkeypatch)
    found = run_evaluate(monkeypatch, capsys, str(checkpoint))
    assert found == {"data_id": "shapes", "metrics": record["metrics"], "protocols": record["protocols"]}

    # the tokenizer is named, its run and the tokens are not there
    upstream = checkpoint_below(experiment, upstream_of(experiment))  # type: ignore[arg-type]
    elsewhere = ["--output-dir", str(tmp_path / "x"), "--tokenizer", str(upstream)]
    changed = run_evaluate(monkeypatch, capsys, str(checkpoint), *elsewhere, "model.generation.acceptance=[]")
    assert changed["metrics"] == pytest.approx({k: v for k, v in record["metrics"].items() if "accept" not in k})
    assert not (tmp_path / "x/tokens").exists() and not trained

    # another tokenizer than the one it was trained with
    content = load_checkpoint(upstream)
    content["state_dict"] = {key: value + 1 for key, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit):
        run_evaluate(monkeypatch, capsys, str(checkpoint), "--tokenizer", str(tmp_path / "other.ckpt"))
    message = capsys.readouterr().err
    assert "other.ckpt: the model was trained on tokens of tokenizer" in message and message.count("\n") == 1


def test_commands_that_read_train_nothing_and_name_the_one_that_does(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny_vim(tiny, NO_IMAGES, "data.flip=true", upstream=["seed=2", "model.loss.l1=0.5"])
    train(experiment, "vim", own_dir(experiment))
    upstream = upstream_of(experiment)
    assert upstream is not None
    path, command = checkpoint_below(experiment, upstream), str(own_dir(experiment) / "checkpoints/final.ckpt")
    shutil.rmtree(path.parents[1])
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("nothing is trained"))
    for main, name in ((experiments.evaluate.main, "evaluate"), (experiments.sample.main, "sample")):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [name, command, "runtime.accelerator=cpu"])
        with pytest.raises(SystemExit):
            main()
        message = capsys.readouterr().err
        assert message.startswith(f"error: {path}: not there; `python -m experiments.train experiments/vqgan_cifar10")
        words = shlex.split(message.partition("`")[2].partition("`")[0])[3:]
        named = load_experiment(RECIPE.with_name(Path(words[0]).name), words[1:])
        assert run_dir(named, "vqgan_cifar10") == path.parents[1]


def test_a_trained_model_is_read_whatever_has_become_of_its_images(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands on the tokenizer of its training, not on one of the images that are here now."""
    folder = tmp_path / "images"
    for split, part in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (folder / split / part).mkdir(parents=True)
        for i in range(4):
            pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8).numpy()
            Image.fromarray(pixels).save(folder / split / part / f"{i}.png")
    keys = ["name=image_folder", "train_size=null", "val_size=null", "random_crop=false"]
    keys = [*(f"data.{key}" for key in keys), f"runtime.data_dir={folder}"]
    experiment = tiny_vim(tiny, NO_IMAGES, *keys, upstream=keys)
    train(experiment, "vim", own_dir(experiment))
    checkpoint, tokenizer = (
        path / "checkpoints/final.ckpt"
        for path in (own_dir(experiment), run_dir(upstream_of(experiment), "vqgan_cifar10"))  # type: ignore[arg-type]
    )
    capsys.readouterr()
    before = run_evaluate(monkeypatch, capsys, str(checkpoint), "--data-dir", str(folder))
    (folder / "val/a/1.png").rename(folder / "val/b/9.png")
    after = run_evaluate(monkeypatch, capsys, str(checkpoint), "--data-dir", str(folder))
    assert after["data_id"] != before["data_id"] and after["protocols"] == before["protocols"]

    shutil.rmtree(folder)
    for name in ("x.png", "y.png"):
        sampling = [str(checkpoint), "--data-dir", str(folder), "--num", "2", "--out", str(tmp_path / name)]
        monkeypatch.setattr(sys, "argv", ["sample", *sampling, "runtime.accelerator=cpu"])
        if name == "x.png":
            experiments.sample.main()
            assert (tmp_path / name).is_file()
            tokenizer.rename(tmp_path / "elsewhere.ckpt")
    with pytest.raises(SystemExit):
        experiments.sample.main()
    message = capsys.readouterr().err
    assert f"error: {tokenizer}: not there; `python -m experiments.train " in message
    assert message.endswith(f"trains it on the images {before['data_id']}, or name its checkpoint with --tokenizer\n")


def test_evaluation_without_generation_needs_no_samples(tiny: TinyExperiment, tmp_path: Path) -> None:
    module, _ = build(tiny_vim(tiny, NO_IMAGES))
    experiment = tiny_vim(tiny, NO_IMAGES)
    images = build_data(experiment)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data = EncodedImages(images, module.tokenizer)  # type: ignore[arg-type]
    assert set(evaluate(trainer, module, data, images, tmp_path)) == {"bits_per_token/val"}
    assert not [*tmp_path.iterdir()], "no reference features either"
