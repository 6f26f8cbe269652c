"""Training that begins with the weights of a checkpoint, and what its record says of it."""

import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from token_cases import save

from experiments import train as command
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data
from experiments.pipeline.prepare import prepare
from experiments.pipeline.starting import starting_from
from experiments.pipeline.training import train
from lightning_modules import Tokenizer
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.quantizers import LargeCodebook

GAN, OTHER = "model.loss.adversarial=0.1", "seed=1"  # than that of the weights


@pytest.fixture
def origin(tiny: TinyExperiment, tmp_path: Path) -> Path:
    return save(tiny("vqgan", GAN), tmp_path / "origin.ckpt")


def started(experiment: Experiment) -> dict[str, torch.Tensor]:
    return prepare(experiment).module.state_dict()


def test_all_weights_or_parts_of_them(tiny: TinyExperiment, origin: Path) -> None:
    theirs, fresh = load_checkpoint(origin)["state_dict"], started(tiny("vqgan", GAN, OTHER))
    assert not torch.equal(fresh["encoder.conv_in.weight"], theirs["encoder.conv_in.weight"])
    both = started(starting_from(tiny("vqgan", GAN, OTHER), str(origin)))
    assert all(torch.equal(both[key], theirs[key]) for key in theirs)
    parts = started(starting_from(tiny("vqgan", GAN, OTHER, "model.codebook_size=64"), str(origin), "encoder, decoder"))
    for key, value in parts.items():
        if key.startswith(("encoder", "decoder")):
            assert torch.equal(value, theirs[key])
    assert parts["quantizer.codes"].shape == (64, 8)


def test_an_exported_model_has_no_discriminator_to_begin_with(
    tiny: TinyExperiment, origin: Path, tmp_path: Path
) -> None:
    Tokenizer.from_pretrained(origin).save_pretrained(tmp_path / "exported")
    experiment, fresh = tiny("vqgan", GAN, OTHER), started(tiny("vqgan", GAN, OTHER))
    state = started(starting_from(experiment, str(tmp_path / "exported")))
    theirs = load_checkpoint(origin)["state_dict"]
    for key, value in state.items():
        assert torch.equal(value, fresh[key] if key.startswith("discriminator.") else theirs[key])
    without = started(starting_from(tiny("vqgan"), str(origin)))
    assert not any(key.startswith("discriminator.") for key in without), "a training may do without"


def test_the_record_names_what_the_run_began_from(tiny: TinyExperiment, origin: Path, tmp_path: Path) -> None:
    plain, begun = tiny("vqgan", GAN), starting_from(tiny("vqgan", GAN), str(origin))
    assert begun.digest() != plain.digest() and "start_from" not in plain.identity()
    moved = origin.rename(tmp_path / "moved.ckpt")
    assert starting_from(plain, str(moved)).digest() == begun.digest(), "by its contents, not by its place"
    other = save(tiny("vqgan", GAN), tmp_path / "other.ckpt", first_used=9)
    assert starting_from(plain, str(other)).digest() != begun.digest()

    begun = starting_from(plain, str(moved))
    record = train(begun, "x", tmp_path / "run")
    start = {"path": str(moved), "weights": begun.start_from.weights, "parts": "", "grown_from": 0}
    assert record["config"]["start_from"] == start
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint["experiment"]["start_from"]["weights"] == begun.start_from.weights
    assert train(begun, "x", tmp_path / "again") == record, "a finished run is not trained again"


def test_what_does_not_fit_is_one_error(tiny: TinyExperiment, origin: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"quantizer.codes is \(32, 8\) there and \(16, 8\) here: .* --parts"):
        started(starting_from(tiny("vqgan", GAN, "model.codebook_size=16"), str(origin)))
    with pytest.raises(ValueError, match=r"does not fit this model: lacks .* and .* more"):
        started(starting_from(tiny("vit_vqgan"), str(origin)))
    with pytest.raises(ValueError, match="has no part 'encodr'; its parts are decoder, discriminator, encoder"):
        starting_from(tiny("vqgan"), str(origin), "encodr")
    with pytest.raises(ValueError, match="no such checkpoint"):
        starting_from(tiny("vqgan"), str(tmp_path / "absent.ckpt"))
    experiment = starting_from(tiny("vqgan", GAN), str(origin))
    save(tiny("vqgan", GAN), origin, first_used=9)
    with pytest.raises(ValueError, match="the run began with"):
        started(experiment)


@pytest.mark.parametrize("name", ["vqgan", "vqgan_fc", "vqgan_ema"])
def test_a_codebook_grows_by_codes_on_latents(tiny: TinyExperiment, tmp_path: Path, name: str) -> None:
    origin, larger = save(tiny(name), tmp_path / "origin.ckpt"), tiny(name, OTHER, "model.codebook_size=96")
    begun = starting_from(larger, str(origin))
    assert begun.start_from.grown_from == 32 and begun.identity()["start_from"]["grown_from"] == 32
    module, theirs = prepare(begun).module, load_checkpoint(origin)["state_dict"]
    codes = module.quantizer.codes.detach()
    assert codes.shape == (96, 8) and torch.equal(codes[:32], theirs["quantizer.codes"])
    batch = next(iter(build_data(larger).ordered_train_dataloader()))["image"]
    latents = module.quantizer.prepare(module.latents(batch)).flatten(0, 2).detach()
    nearest = torch.cdist(codes[32:], latents).min(1).values
    assert (nearest < 0.1 * latents.std(0).norm()).all() and len(codes.unique(dim=0)) == 96
    if name == "vqgan_ema":
        torch.testing.assert_close(module.quantizer.sums[32:], 4 * 64 / 96 * codes[32:])
        assert torch.equal(module.quantizer.sums[:32], theirs["quantizer.sums"])
    assert all(torch.equal(value, module.state_dict()[key]) for key, value in started(begun).items()), "by the seed"
    assert starting_from(larger, str(origin), "encoder,decoder").start_from.grown_from == 0
    assert train(begun, "x", tmp_path / "run")["config"]["start_from"]["grown_from"] == 32


def test_codebooks_that_stand_on_a_table(tiny: TinyExperiment, tmp_path: Path) -> None:
    keys = ["model.quantizer.name=simvq", "model.quantizer.codebook_weight=1"]
    small = prepare(tiny("vqgan", *keys)).module
    small.save_pretrained(tmp_path / "simvq")
    state = started(starting_from(tiny("vqgan", *keys, "model.codebook_size=64"), str(tmp_path / "simvq")))
    assert state["quantizer.table"].shape == (64, 8)
    assert torch.equal(state["quantizer.table"][:32], small.quantizer.table)
    prepare(tiny("vqgan_lc")).module.save_pretrained(tmp_path / "lc")
    with pytest.raises(ValueError, match=r"built, not grown from 32 to 64 codes: take .* --parts"):
        starting_from(tiny("vqgan_lc", "model.codebook_size=64"), str(tmp_path / "lc"))


def test_a_codebook_that_comes_along_is_not_made_again(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = prepare(tiny("vqgan_lc")).module
    module.save_pretrained(tmp_path / "lc")
    monkeypatch.setattr("experiments.pipeline.prepare.codebook_for", lambda *_: pytest.fail("made again"))
    again = prepare(starting_from(tiny("vqgan_lc", "seed=1"), str(tmp_path / "lc"))).module
    assert isinstance(again.quantizer, LargeCodebook) and again.quantizer.is_filled
    assert torch.equal(again.quantizer.table, module.quantizer.table)


def test_the_command_goes_on_from_a_run(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of three steps, the second from the first one's weights, with the configuration in its checkpoint."""
    experiment = tiny("vqgan")
    train(experiment, "x", tmp_path / "first")
    where = [f"runtime.{key}={value}" for key, value in vars(experiment.runtime).items() if key.endswith(("dir", "or"))]
    seen: list[dict[str, Any]] = []
    fit = L.Trainer.fit
    monkeypatch.setattr(
        L.Trainer, "fit", lambda self, module, *a, **k: (seen.append(clone(module)), fit(self, module, *a, **k))
    )

    def clone(module: Any) -> dict[str, Any]:
        return {key: value.clone() for key, value in module.state_dict().items()}

    arguments = ["train", "--from", str(tmp_path / "first"), "trainer.max_steps=4", *where]
    monkeypatch.setattr(sys, "argv", [*arguments, "--run-dir", str(tmp_path / "second")])
    command.main()
    assert "starts from" in capsys.readouterr().out
    first, second = load_checkpoint(tmp_path / "first"), load_checkpoint(tmp_path / "second")
    assert all(torch.equal(seen[0][key], value) for key, value in first["state_dict"].items())
    assert second["generator_steps"] == 4 and second["experiment"]["data"] == first["experiment"]["data"]
    assert second["experiment"]["start_from"]["path"].endswith("first/checkpoints/final.ckpt")
    for wrong in (["train"], ["train", "trainer.max_steps=3"]):
        monkeypatch.setattr(sys, "argv", wrong)
        with pytest.raises(SystemExit):
            command.main()
        assert "name a recipe" in capsys.readouterr().err
