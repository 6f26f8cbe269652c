"""From a tokenizer to latents, to a model of them, to images and their metrics; continued, evaluated, sampled."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from latent_cases import NAMES, tiny_latents
from PIL import Image

import experiments.evaluate
import experiments.sample
from datamodules import LatentsDataModule
from experiments.config.compose import load_experiment
from experiments.pipeline.build import resolve_data
from experiments.pipeline.encode import EncodedImages
from experiments.pipeline.prepare import prepare
from experiments.pipeline.training import train, train_upstream
from experiments.pipeline.upstream import checkpoint_below, run_dir, upstream_of
from lightning_modules.latent_prior import LatentPrior
from lightning_modules.pretrained import load_checkpoint

FOLDER = Path(__file__).parents[3] / "experiments"
NO_IMAGES = "model.generation.num_samples=0"
each = pytest.mark.parametrize("name", NAMES)


@each
def test_from_images_to_images(tiny: TinyExperiment, name: str, monkeypatch: Any, capsys: Any) -> None:
    """The record has FD and utilisation; evaluation repeats it; other tokenizers are refused; sampling writes files."""
    experiment = tiny_latents(tiny, name, "data.flip=true", "model.generation.acceptance=[0.5]")
    folder = run_dir(experiment, name)
    record = train(experiment, name, folder)
    generated = {"fid", "is", "is_std", "usage/generated", "reachable/generated"}
    expected = {"loss/val", "latents/mean", "latents/deviation", "latents/deviation/generated", *generated}
    assert expected | {f"{metric}/accept-0.5" for metric in generated} <= set(record["metrics"])
    assert set(record["metrics"]) == set(record["protocols"])
    sampling = experiment.model.sampling.id  # type: ignore[attr-defined]
    assert record["protocols"]["fid"].endswith(f"/generated-vs-train16/n12/uint8/{sampling}")
    (kept,) = (Path(experiment.runtime.output_dir) / "latents").glob("*/meta.json")
    meta = json.loads(kept.read_text())
    assert meta["views"]["train"] == ["plain", "mirrored"] and meta["stored"] == "float32" and meta["code_dim"] == 8

    checkpoint = str(folder / "checkpoints/final.ckpt")
    upstream = checkpoint_below(experiment, upstream_of(experiment))  # type: ignore[arg-type]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["evaluate", checkpoint, "--json", "runtime.accelerator=cpu"])
    experiments.evaluate.main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["metrics"] == record["metrics"]

    content = load_checkpoint(upstream)
    content["state_dict"] = {key: value + 1 for key, value in content["state_dict"].items()}
    torch.save(content, folder / "other.ckpt")
    sample = ["sample", checkpoint, "--num", "4", "--steps", "3", "--guidance", "2", "runtime.accelerator=cpu"]
    monkeypatch.setattr(sys, "argv", [*sample, "--tokenizer", str(folder / "other.ckpt")])
    with pytest.raises(SystemExit):
        experiments.sample.main()
    assert "other.ckpt: the model was trained on latents of tokenizer" in capsys.readouterr().err
    if name == "ldm":
        sample[5] = "4"
    monkeypatch.setattr(sys, "argv", [*sample, "--out", str(folder / "grid.png")])
    experiments.sample.main()
    assert np.asarray(Image.open(folder / "grid.png")).std() > 1
    monkeypatch.setattr(sys, "argv", [*sample, "--top-k", "3"])
    with pytest.raises(SystemExit):
        experiments.sample.main()
    assert f"--top-k: a '{name}' is not sampled so; it has precision, guidance_scale" in capsys.readouterr().err


def test_encoding_at_every_step_gives_the_latents_of_the_cache(tiny: TinyExperiment) -> None:
    experiment = tiny_latents(tiny, "sit", NO_IMAGES)
    train_upstream(experiment)
    cached = prepare(experiment)
    encoded = prepare(tiny_latents(tiny, "sit", NO_IMAGES, "model.encode_on_the_fly=true"))
    halved = prepare(tiny_latents(tiny, "sit", NO_IMAGES, "model.latents_stored=float16"))
    assert isinstance(encoded.data, EncodedImages) and isinstance(cached.data, LatentsDataModule)
    loaders = [getattr(made.data, "train_dataloader")() for made in (cached, encoded, halved)]  # noqa: B009
    for kept, image, half in zip(*loaders, strict=True):
        made = encoded.data.on_after_batch_transfer(image, 0)
        torch.testing.assert_close(kept["latents"], made["latents"])  # of another batch size
        assert torch.equal(kept["label"], made["label"])
        assert torch.equal(kept["latents"].half().float(), half["latents"])
    for key, value in cached.module.state_dict().items():
        assert torch.equal(value, encoded.module.state_dict()[key])


@each
@pytest.mark.parametrize("options", [["trainer.checkpoint_every=4"], ["trainer.checkpoint_every=5"]])
def test_a_continued_run_is_bit_equal(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: list[str]
) -> None:
    """Four batches an epoch; with dropped labels, two views, averaged weights, and scaled latents."""
    random = ["model.label_dropout=0.3", "data.flip=true", "trainer.weight_ema=0.5", "model.scale_latents=true"]
    random += ["trainer.weight_ema_ramp=true"] if name == "ldm" else []
    experiment = tiny_latents(tiny, name, NO_IMAGES, "trainer.max_steps=7", *random, *options)
    straight = train(experiment, name, tmp_path / "a")
    expected = load_checkpoint(tmp_path / "a/checkpoints/final.ckpt")
    for path in Path(experiment.runtime.output_dir).glob(f"records/{experiment.digest()}.*"):
        path.unlink()
    step = LatentPrior.training_step

    def stopping(self: LatentPrior, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 6:
            raise ConnectionAbortedError("stopped")
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(LatentPrior, "training_step", stopping)
        with pytest.raises(ConnectionAbortedError):
            train(experiment, name, tmp_path / "b")
    record = train(experiment, name, tmp_path / "b")
    assert record["metrics"] == straight["metrics"]
    found = load_checkpoint(tmp_path / "b/checkpoints/final.ckpt")
    assert found["state_dict"]["scale"] != 1
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)


def test_a_network_that_does_not_fit_is_named_before_the_tokenizer_is_trained(tiny: TinyExperiment) -> None:
    experiment = tiny_latents(tiny, "sit", "model.dit.patch_size=3")
    with pytest.raises(ValueError, match="patch_size=3 does not divide the grid of 8 x 8 latents"):
        train(experiment, "sit", run_dir(experiment, "sit"))
    assert not (Path(experiment.runtime.output_dir) / "experiments").exists() or not list(
        (Path(experiment.runtime.output_dir) / "experiments").glob("vqgan*/checkpoints/*")
    )


@each
def test_a_cifar10_recipe_trains_two_steps(name: str, tmp_path: Path, shared_encoders: None) -> None:
    """On shapes, few and small batches, and a tokenizer of two steps."""
    below = ["model.codebook_size=64", "trainer.max_steps=2", "data.batch_size=4", "data.train_size=8"]
    below += ["model.quantizer.source.num_images=20", "model.quantizer.source.method=random"]
    below += ["model.loss.discriminator_start=0", "model.loss.adversarial_start=0", "data.val_size=8"]
    own = ["data.batch_size=4", "data.train_size=8", "data.val_size=8", "trainer.max_steps=2"]
    own += ["model.generation.num_samples=4", "model.sampling.steps=2", "model.optimizer.warmup_steps=1"]
    runtime = [f"runtime.output_dir={tmp_path}", "runtime.accelerator=cpu"]
    experiment = load_experiment(
        FOLDER / f"{name}_cifar10.yaml", [*own, *runtime, *(f"upstream.{change}" for change in below)]
    )
    record = train(resolve_data(experiment, "shapes"), f"{name}_cifar10", tmp_path / "run")
    assert np.isfinite(list(record["metrics"].values())).all()
