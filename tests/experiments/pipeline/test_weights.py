"""Weights that are kept and measured later give the record that the training would have written."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import TinyExperiment
from small_sweep import sweep_of

from experiments.config.experiment import Experiment
from experiments.pipeline.codebooks import build
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.pipeline.weights import weights_path
from experiments.runtime.records import read_record, record_path
from sweeps import grid as grid_module
from sweeps.run import main as run_main

GAME = ("model.loss.adversarial=0.1", "model.loss.discriminator_start=1", "model.loss.adversarial_start=2")
MACHINE = ("environment", "evaluated_on", "images_per_second", "wall_seconds")
MACHINE += ("peak_memory_bytes", "peak_device_memory_bytes")


def numbers(experiment: Experiment) -> dict[str, Any]:
    """Those of the record file, without machine and times."""
    path = record_path(Path(experiment.runtime.output_dir) / "records", experiment, "shapes")
    return {key: value for key, value in read_record(path).items() if key not in MACHINE}


@pytest.mark.parametrize("name", ["vqgan_lc", "vqgan_ema", "vit_vqgan"])
def test_measured_later_is_measured_at_once(tiny: TinyExperiment, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tiny().runtime.output_dir
    at_once, trains, measures = (
        tiny(name, *GAME, "trainer.weight_ema=0.5", f"runtime.output_dir={out}/{folder}", *extra)
        for folder, extra in (("a", ["runtime.keep_weights=true"]), ("b", ["runtime.evaluate_later=true"]), ("b", []))
    )
    expected = train(at_once, name, run_dir(at_once, name))
    assert expected["evaluated_on"] == {"device": "cpu"}
    first = train(trains, name, run_dir(trains, name))
    assert "evaluated_on" not in first and not list((Path(out) / "b" / "records").glob("*.json"))

    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("nothing is trained again"))
    assert train(trains, name, run_dir(trains, name)) == first
    later = train(measures, name, run_dir(measures, name))
    assert numbers(measures) == numbers(at_once)
    assert later["evaluated_on"]["device"] == "cpu" and "torch" in later["evaluated_on"]
    for each in (at_once, trains):
        kept = torch.load(weights_path(each, "shapes"), weights_only=True)
        assert kept.keys() == {"experiment", "format", "data_id", "images", "state_dict", "table", "record"}
        assert not [key for key in kept["state_dict"] if key.startswith("discriminator.") or key == "quantizer.table"]
        assert bool(kept["table"]) == (name == "vqgan_lc")


def test_another_metric_costs_no_training(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    first, ranks = tiny("vqgan", "runtime.keep_weights=true"), tiny("vqgan", "model.metrics.code_ranks=[1,32]")
    train(first, "vqgan", run_dir(first, "vqgan"))
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("nothing is trained again"))
    record = train(ranks, "vqgan", run_dir(ranks, "vqgan"))
    before = numbers(first)
    assert record["config"] == ranks.identity() and record["digest"] == ranks.digest() != before["digest"]
    assert record["metrics"].keys() - before["metrics"].keys() == {"psnr/rank1", "psnr/rank32", "psnr/used_rank1"}
    assert before["metrics"].items() <= record["metrics"].items()
    assert record["metrics"]["psnr/rank1"] == pytest.approx(record["metrics"]["psnr"], abs=1e-4)


def test_weights_of_an_earlier_version_are_found(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    trains, measures = tiny("vqgan", "runtime.evaluate_later=true"), tiny("vqgan")
    train(trains, "vqgan", run_dir(trains, "vqgan"))
    now = weights_path(trains, "shapes")
    now.rename(now.with_name(f"{trains.digest()}.shapes.pt"))
    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("nothing is trained again"))
    assert train(measures, "vqgan", run_dir(measures, "vqgan"))["evaluated_on"]["device"] == "cpu"


@pytest.mark.parametrize("change", ["seed=1", "model.metrics.code_ranks=[1]"])
def test_another_training_has_other_weights(tiny: TinyExperiment, change: str) -> None:
    validates = "trainer.validate_every=1"  # what is measured on the way is in the record of the training
    assert tiny("vqgan", validates).training_digest() != tiny("vqgan", validates, change).training_digest()
    assert tiny("vqgan").training_digest() != tiny("vqgan", "seed=1").training_digest()


def test_another_codebook_is_named(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    trains, measures = tiny("vqgan_lc", "runtime.evaluate_later=true"), tiny("vqgan_lc")
    train(trains, "lc", run_dir(trains, "lc"))
    (codebook,) = (Path(trains.runtime.output_dir) / "codebooks").glob("*.safetensors")
    table, _ = build.open_codebook(codebook)
    build.save_codebook(codebook, table + 1e-6, {}, "shapes", 1, {})
    with pytest.raises(ValueError, match=f"another codebook .* bring {codebook.name} from there to {codebook.parent}"):
        train(measures, "lc", run_dir(measures, "lc"))


def test_weights_of_another_file_are_refused(tiny: TinyExperiment) -> None:
    trains, other = tiny("vqgan", "runtime.evaluate_later=true"), tiny("vqgan", "seed=1")
    train(trains, "vqgan", run_dir(trains, "vqgan"))
    path = weights_path(trains, "shapes").rename(weights_path(other, "shapes"))
    with pytest.raises(ValueError, match=f"{path}: not the weights of this experiment"):
        train(other, "vqgan", run_dir(other, "vqgan"))


def test_a_sweep_is_trained_and_later_evaluated(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    identity = tiny("vqgan").identity() | {"runtime": {"accelerator": "cpu"}}
    identity.pop("seed")
    identity["model"].pop("codebook_size")
    (tmp_path / "vqgan_imagenet.yaml").write_text(yaml.safe_dump(identity))
    (tmp_path / "sweep.yaml").write_text(sweep_of(16, 32))
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    words = [str(tmp_path / "sweep.yaml"), "--scale", "paper", "--output-dir", str(tmp_path / "runs")]
    records = tmp_path / "runs" / "records"

    assert run_main([*words, "--evaluate-later", "--only", "16"]) == 0
    out = capsys.readouterr().out
    assert ", to be evaluated" in out and "1 of 1 cells trained; without --evaluate-later" in out
    assert run_main([*words, "--evaluate-later", "--only", "16"]) == 0
    assert "trained earlier, to be evaluated" in capsys.readouterr().out and not list(records.glob("*.json"))
    assert run_main([*words, "--evaluate-only"]) == 0
    assert "1 of 1 cells finished" in capsys.readouterr().out and len(list(records.glob("*.json"))) == 1
    assert run_main(words) == 0
    assert len(list(records.glob("*.json"))) == 2
