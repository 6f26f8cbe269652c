"""What a run says of itself: its configuration, its name, its loggers, its pictures."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TinyExperiment

import experiments.train
from experiments.config.compose import described, load_experiment
from experiments.config.experiment import RuntimeConfig
from experiments.pipeline.training import train
from experiments.pipeline.upstream import run_dir
from experiments.runtime.loggers import PACKAGES, check_loggers
from experiments.runtime.progress import TimeLeft
from lightning_modules.pretrained import load_checkpoint


@pytest.mark.parametrize("file", ["vqgan_lc_cifar10.yaml", "probe_vim_cifar10.yaml", "vit_vqgan_imagenet.yaml"])
def test_config_yaml_is_the_same_experiment(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "sweeps.run", "--storage", "postgresql://me:secret@host/db"])
    experiment = load_experiment(file, ["seed=3", "runtime.output_dir=elsewhere", "trainer.log_every=7"])
    (path := tmp_path / "config.yaml").write_text(described(experiment, "a_name"))
    again = load_experiment(path)
    assert replace(again, name="") == experiment and again.name == "a_name" and again.digest() == experiment.digest()
    assert path.read_text().startswith("# python -m sweeps.run --storage postgresql://host/db\n")


def test_the_file_goes_on_with_its_run(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny("vqgan")
    folder = run_dir(experiment, "mine")
    train(experiment, "mine", folder)
    monkeypatch.setattr(sys, "argv", ["train", str(folder / "config.yaml")])
    (record,) = Path(experiment.runtime.output_dir).glob("records/*")
    record.unlink()
    experiments.train.main()
    out = capsys.readouterr().out
    assert f"finished: {folder}\n" in out and "continues from step 3 of 3\n" in out and record.is_file()


def test_names_of_runs(tiny: TinyExperiment) -> None:
    fc, l2 = (tiny("vqgan_fc", f"model.quantizer.l2_norm={on}") for on in ("false", "true"))
    names = [run_dir(one, "fc").name.rpartition("_")[0] for one in (fc, l2, tiny("vqgan_fc", "model.code_dim=4"))]
    assert names == ["fc_k32_d8_s0", "fc_l2_k32_d8_s0", "fc_k32_d4_s0"]
    other = tiny("vqgan", "model.quantizer.name=rotation")
    assert run_dir(other, "vq").name.startswith("vq_rotation_k32_d8_s0_")
    earlier = run_dir(l2, "fc").with_name(f"fc_k32_s0_{run_dir(l2, 'fc').name[-12:]}")
    earlier.mkdir(parents=True)
    assert run_dir(l2, "fc") == earlier, "a run of an earlier version is found"


@pytest.mark.parametrize("name", ["vqgan", "vqgan_ema", "vqgan_lc", "vit_vqgan"])
def test_pictures_change_no_number(name: str, tiny: TinyExperiment, tmp_path: Path) -> None:
    def weights(every: int) -> dict[str, torch.Tensor]:
        options = ["data.flip=true", "model.loss={adversarial: 0.1, perceptual: 1}", f"trainer.show_every={every}"]
        experiment = tiny(name, *options, "trainer.max_steps=5", f"runtime.output_dir={tmp_path / str(every)}")
        train(experiment, "x", tmp_path / f"run{every}")
        return load_checkpoint(tmp_path / f"run{every}")["state_dict"]

    torch.testing.assert_close(weights(1), weights(100), rtol=0, atol=0)


def test_another_logger(tiny: TinyExperiment, tmp_path: Path) -> None:
    train(tiny("vqgan", "runtime.loggers=csv"), "x", tmp_path / "csv")
    (numbers,) = (tmp_path / "csv").glob("csv/*/metrics.csv")
    assert "val/psnr" in numbers.read_text().splitlines()[0]
    assert "max_steps: 3" in (numbers.parent / "hparams.yaml").read_text()
    assert not [*(tmp_path / "csv").glob("events*")]


def test_a_logger_that_is_not_there_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"runtime\.loggers=csv,tensorbord: 'tensorbord' is none of tensorboard, csv"):
        check_loggers(RuntimeConfig(loggers="csv,tensorbord"))
    monkeypatch.setitem(PACKAGES, "wandb", "no_such_package")
    with pytest.raises(ValueError, match=r"runtime\.loggers=wandb needs `pip install no_such_package`"):
        check_loggers(RuntimeConfig(loggers="wandb"))


def test_the_bar_counts_no_unlimited_epochs() -> None:
    assert TimeLeft()._get_train_description(1).strip() == "Epoch 1"
