"""Training end to end: record, dashboard, re-measurement, and going on after a stop."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import TinyExperiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torchvision.datasets import CIFAR10
from vim_cases import tiny_vim

import experiments.evaluate
import experiments.pipeline.training
import experiments.train
from datamodules.cifar10 import CIFAR10DataModule
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, build_model, resolve_data, restore
from experiments.pipeline.evaluation import evaluate
from experiments.pipeline.training import plan, train
from experiments.runtime.errors import user_errors
from experiments.runtime.records import Record, read_record
from experiments.runtime.trainer import build_trainer
from lightning_modules.losses import logit_laplace_loss
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vqgan import VQGAN

PROJECT = Path(__file__).parents[3]
VALIDATION = {"usage/val", "perplexity/val", "dead_codes/val", "usage/batch", "psnr", "ssim", "l1", "l2"} | {
    "reachable/val",
    "reachable/batch",
    "effective_rank/val",
    "feature_distance",
    "rfid",
    "ris",
    "ris_std",
}
EPOCH = {"usage/epoch", "reachable/epoch", "perplexity/epoch", "dead_codes/epoch"}


def records(experiment: Experiment) -> list[Path]:
    return [*Path(experiment.runtime.output_dir).glob("records/*")]


def measure(experiment: Experiment, module: Tokenizer) -> dict[str, float]:
    """What experiments.evaluate does."""
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data = build_data(experiment)
    return evaluate(trainer, module, data, data, Path(experiment.runtime.output_dir))


# ---- one run


@pytest.mark.parametrize("name", ["vqgan", "vqgan_ema", "vqgan_lc", "vit_vqgan"])
def test_a_run_writes_a_record_that_evaluation_repeats(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    experiment, run_dir = tiny(name, "model.loss.adversarial=0.1"), tmp_path / "run"
    record = train(experiment, "a name", run_dir)
    (path,) = records(experiment)
    assert read_record(path) == record
    assert path.name == f"{experiment.digest()}.shapes.json"
    assert set(record["metrics"]) == set(record["protocols"]) == VALIDATION | EPOCH
    assert all(isinstance(value, float) for value in record["metrics"].values())
    assert record["config"] == experiment.identity() and record["name"] == "a name"
    assert record["parameters"] > 1000 and record["images_per_second"] > 0 and record["num_concurrent"] == 1
    assert record["protocols"]["rfid"] == "rfid/efficientnet-lite0@32px/val-vs-val/n12/uint8"
    assert record["protocols"]["usage/epoch"] == f"usage/training-epoch/tokens{3 * 4 * 64}"
    files = sorted(file.name for file in (run_dir / "checkpoints").iterdir())
    assert files == ["final.ckpt"], "last.ckpt is superfluous now"

    again, module = restore(run_dir / "checkpoints/final.ckpt", {"runtime": vars(experiment.runtime)})
    assert again.identity() == experiment.identity() and module.step == 3
    assert measure(again, module) == {key: record["metrics"][key] for key in VALIDATION}

    monkeypatch.setattr(L.Trainer, "fit", lambda *_, **__: pytest.fail("a finished run is not trained again"))
    assert train(experiment, "a name", tmp_path / "another") == record


def test_a_plan_trains_nothing(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment, folder = tiny(), tmp_path / "run"
    (first, images) = plan(experiment, folder)
    assert first == f"{folder}: begins; 3 steps of 4 images" and "16 to train on, 12 to validate" in images
    assert not folder.exists()
    train(experiment, "x", folder)
    (line,) = plan(experiment, folder)
    assert line.startswith("finished, nothing to do: ")
    for path in (tmp_path / "runs/records").iterdir():
        path.unlink()
    assert plan(experiment, folder)[0].startswith(f"{folder}: continues from {folder}/checkpoints/final.ckpt")
    above = tiny_vim(tiny)
    lines = plan(above, tmp_path / "vim")
    assert "vqgan_cifar10.yaml: is trained first" in lines[2] and "begins; 1 steps of 4 images" in lines[3]


def test_logit_laplace_is_measured_where_the_model_predicts_it(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny("vit_vqgan", "model.loss.logit_laplace=0.1", "model.metrics.num_images=10")
    record = train(experiment, "x", tmp_path)
    assert set(record["metrics"]) == set(record["protocols"]) == VALIDATION | EPOCH | {"logit_laplace"}
    assert record["protocols"]["logit_laplace"].endswith("/n10")

    _, module = restore(tmp_path / "checkpoints/final.ckpt", {"runtime": vars(experiment.runtime)})
    images = torch.cat([batch["image"] for batch in build_data(experiment).val_dataloader()])[:10]
    with torch.no_grad():
        loss = logit_laplace_loss(module.eval()(images).prediction, images)
    assert record["metrics"]["logit_laplace"] == pytest.approx(loss.item(), rel=1e-5)


def test_without_a_quantizer_no_usage_is_measured(tiny: TinyExperiment, tmp_path: Path) -> None:
    """The ceiling of a table: continuous latents. Its images have no tokens."""
    options = ("model.quantizer.name=none", "model.codebook_size=0", "model.loss.adversarial=0.1")
    experiment = tiny("vqgan", *options)
    record = train(experiment, "x", tmp_path)
    of_codes = ("usage", "reachable", "perplexity", "dead_codes", "effective_rank")
    without = {name for name in VALIDATION if name.startswith(of_codes)}
    assert set(record["metrics"]) == set(record["protocols"]) == VALIDATION - without
    assert record["protocols"]["psnr"].endswith("/n12")
    again, module = restore(tmp_path / "checkpoints/final.ckpt", {"runtime": vars(experiment.runtime)})
    assert measure(again, module) == record["metrics"]
    assert not module.figures(), "no codes to count"


def test_psnr_by_code_rank(tiny: TinyExperiment, tmp_path: Path) -> None:
    """B-Figure 5: rank 1 is the reconstruction itself; the farthest codes are worse. Of the codes in use, too."""
    options = "model.metrics.code_ranks=[1,2,32]", "trainer.max_steps=20", "trainer.precision=bf16-mixed"
    record = train(tiny("vqgan", *options), "x", tmp_path)
    metrics = record["metrics"]
    assert metrics["psnr/rank1"] == metrics["psnr/used_rank1"] == pytest.approx(metrics["psnr"], abs=1e-4)
    assert metrics["psnr/rank32"] < metrics["psnr"] - 0.1
    assert metrics["psnr/used_rank2"] < metrics["psnr/rank2"], "the second of fewer codes is farther"
    assert metrics["usage/val"] < 100 and "psnr/used_rank32" not in metrics, "fewer are in use"
    assert record["protocols"]["psnr/rank32"] == "psnr/rgb-range1-per-image/code-rank32/n12"
    assert record["protocols"]["psnr/used_rank2"] == "psnr/rgb-range1-per-image/code-rank2-of-used-in-val/n12"


def test_the_record_holds_the_usage_of_every_whole_epoch(tiny: TinyExperiment, tmp_path: Path) -> None:
    """B-Figure 3. 24 images in batches of 4: an epoch is six steps."""
    experiment = tiny("vqgan", "data.train_size=24", "trainer.max_steps=14", "trainer.checkpoint_every=8")
    history = train(experiment, "x", tmp_path)["history"]["usage/epoch"]
    assert len(history) == 2 and all(0 < usage <= 100 for usage in history)


def test_the_checkpoint_is_plain_and_holds_no_pretrained_network(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny("vqgan", "model.loss.perceptual=1", "model.loss.adversarial=0.1")
    train(experiment, "x", tmp_path)
    file = tmp_path / "checkpoints/final.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    assert checkpoint["experiment"] == experiment.identity() and checkpoint["generator_steps"] == 3
    parts = {name.split(".")[0] for name in checkpoint["state_dict"]}
    assert parts == {"encoder", "decoder", "pre_quant", "post_quant", "quantizer", "discriminator"}
    trained = sum(value.numel() for value in checkpoint["state_dict"].values())
    assert file.stat().st_size < 4 * 4 * trained + 300_000, "weights and two moments; EfficientNet alone has 19 MB"


def test_evaluate_prints_what_the_record_holds(
    tiny: TinyExperiment, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny()
    record = train(experiment, "x", tmp_path / "run")
    capsys.readouterr()
    output_dir = ["--output-dir", experiment.runtime.output_dir]
    command = [
        "evaluate",
        str(tmp_path / "run/checkpoints/final.ckpt"),
        *output_dir,
        "--json",
        "runtime.accelerator=cpu",
    ]
    monkeypatch.setattr(sys, "argv", command)
    experiments.evaluate.main()
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed["data_id"] == "shapes"
    assert printed["metrics"] == {key: record["metrics"][key] for key in VALIDATION}
    assert printed["protocols"] == {key: record["protocols"][key] for key in VALIDATION}
    monkeypatch.setattr(sys, "argv", [*command[:-2], "--dry-run", command[-1]])
    monkeypatch.setattr("experiments.pipeline.evaluation.evaluate", lambda *_: pytest.fail("measured"))
    experiments.evaluate.main()
    assert capsys.readouterr().out.splitlines()[-1] == f"{command[1]}  would be measured on shapes"


def test_the_dashboard(tiny: TinyExperiment, tmp_path: Path) -> None:
    options = ["trainer.validate_every=2", "trainer.max_steps=4", "trainer.show_every=1"]
    record = train(tiny("vqgan", *options), "x", tmp_path)
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "histograms": 0, "scalars": 0}).Reload()
    tags = events.Tags()
    scalars = set(tags["scalars"])
    assert {"loss/generator", "loss/l2", "val/usage", "train/usage", "val/rfid", "val/psnr", "lr-AdamW"} <= scalars
    assert not {"epoch", "hp_metric"} & scalars and not any(tag.startswith("final/") for tag in scalars)
    assert [event.step for event in events.Scalars("loss/l2")] == [0, 1, 2, 3]
    assert tags["images"] == ["val/reconstructions"]
    pictures = events.Images("val/reconstructions")
    assert [event.step for event in pictures] == [1, 2, 3, 4, 4], "every validation and the evaluation, and between"
    assert len({event.encoded_image_string for event in pictures[:3]}) == 3, "of the weights at each step"
    (histogram,) = tags["histograms"]
    assert events.Histograms(histogram)[-1].histogram_value.num == 32
    assert "custom_scalars__config__" in tags["tensors"]
    plugins = events.PluginTagToContent("hparams")
    listed = HParamsPluginData.FromString(plugins["_hparams_/session_start_info"]).session_start_info.hparams
    assert listed["trainer.max_steps"].number_value == 4 and "model.loss.adversarial_loss" not in listed
    (text,) = events.Tensors("configuration/text_summary")
    written = (tmp_path / "config.yaml").read_text()
    assert written in text.tensor_proto.string_val[0].decode()
    assert events.Scalars("val/psnr")[-1].value == pytest.approx(record["metrics"]["psnr"])
    assert load_checkpoint(tmp_path / "checkpoints/final.ckpt")["configuration"] == written


def test_every_curve_of_the_layout_is_logged(tiny: TinyExperiment, tmp_path: Path) -> None:
    train(tiny("vqgan", "model.loss={adversarial: 0.1, perceptual: 1, l1: 1, logit_laplace: 0.1}"), "x", tmp_path)
    logged = set(EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"])
    wanted = {tag for charts in Tokenizer.layout.values() for _, tags in charts.values() for tag in tags}
    assert wanted - logged <= {"val/lpips"}, "no weights for it here"


def test_the_same_seed_gives_the_same_numbers(tiny: TinyExperiment, tmp_path: Path) -> None:
    """Also with random flips, which every part of a run could disturb."""
    numbers = []
    for run in "ab":
        experiment = tiny("vqgan", "data.flip=true", f"runtime.output_dir={tmp_path / run}")
        numbers.append(train(experiment, "x", tmp_path / run / "run")["metrics"])
    assert numbers[0] == numbers[1]
    other = train(tiny("vqgan", "data.flip=true", "seed=1"), "x", tmp_path / "c")["metrics"]
    assert other["l2"] != numbers[0]["l2"]


# ---- averaged weights


def test_averaged_weights_are_validated_and_saved(tiny: TinyExperiment, tmp_path: Path) -> None:
    """The closed form over the steps' weights; an EMA codebook, which is an average already, is left alone."""

    class Steps(L.Callback):
        def __init__(self) -> None:
            self.states: list[dict[str, Tensor]] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            self.states.append({name: value.clone() for name, value in module.state_dict().items()})

    experiment = tiny("vqgan_ema", "trainer.weight_ema=0.6")
    torch.manual_seed(0)
    module, steps = build_model(experiment), Steps()
    trainer = build_trainer(experiment, module, tmp_path, steps)
    trainer.fit(module, build_data(experiment))
    first, second, third = steps.states
    for name, value in module.state_dict().items():
        if name.startswith("quantizer."):
            assert torch.equal(value, third[name]), name
        else:
            torch.testing.assert_close(value, 0.6 * (0.6 * first[name] + 0.4 * second[name]) + 0.4 * third[name])
    trainer.save_checkpoint(tmp_path / "final.ckpt")
    saved = torch.load(tmp_path / "final.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in module.state_dict().items())
    assert not torch.equal(saved["encoder.conv_in.weight"], third["encoder.conv_in.weight"])


# ---- stopping and going on


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The process dies in the training step of this number."""
    training_step = Tokenizer.training_step

    def stopping(self: Tokenizer, batch: dict[str, Tensor], batch_idx: int) -> None:
        if self.step == step:
            raise ConnectionAbortedError("stopped")
        training_step(self, batch, batch_idx)

    monkeypatch.setattr(Tokenizer, "training_step", stopping)


def stopped_and_continued(
    experiment: Experiment, run_dir: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> tuple[Record, dict[str, Any]]:
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(ConnectionAbortedError):
            train(experiment, "x", run_dir)
    assert not records(experiment)
    files = sorted(file.name for file in (run_dir / "checkpoints").iterdir())
    assert files == ["last.ckpt"]
    record = train(experiment, "x", run_dir)
    return record, load_checkpoint(run_dir / "checkpoints/final.ckpt")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vqgan", ["data.flip=true", "model.loss={adversarial: 0.1, adversarial_start: 5}"]),
        ("vqgan", ["data.flip=true", "trainer.checkpoint_every=5", "model.optimizer.warmup_steps=7"]),
        ("vqgan_ema", ["trainer.weight_ema=0.5", "model.quantizer.dead_code_threshold=0.9"]),
        ("vqgan_lc", ["model.optimizer.accumulate=2", "trainer.checkpoint_every=3"]),
    ],
)
def test_a_continued_run_is_bit_equal(
    tiny: TinyExperiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    options: list[str],
) -> None:
    """Four batches an epoch; the checkpoint is at an epoch's end or in its middle."""

    def experiment(output_dir: str) -> Experiment:
        steps = ["trainer.max_steps=7", "trainer.checkpoint_every=4", f"runtime.output_dir={tmp_path / output_dir}"]
        return tiny(name, *steps, *options)

    straight = train(experiment("a"), "x", tmp_path / "straight")
    expected = load_checkpoint(tmp_path / "straight/checkpoints/final.ckpt")
    assert "continues" not in capsys.readouterr().out
    record, checkpoint = stopped_and_continued(experiment("b"), tmp_path / "stopped", monkeypatch, 5)
    assert re.search(r"^continues from step [345] of 7$", capsys.readouterr().out, re.MULTILINE)
    assert record["metrics"] == straight["metrics"]
    assert checkpoint["generator_steps"] == checkpoint["global_step"] == 7
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(checkpoint[key], expected[key], rtol=0, atol=0)


def test_a_run_stopped_in_its_evaluation_is_not_trained_again(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny("vqgan", "trainer.checkpoint_every=3")
    with monkeypatch.context() as patch:
        patch.setattr(
            experiments.pipeline.training, "evaluate", lambda *_: (_ for _ in ()).throw(ConnectionAbortedError)
        )
        with pytest.raises(ConnectionAbortedError):
            train(experiment, "x", tmp_path)
    stop_at(monkeypatch, 3)
    record = train(experiment, "x", tmp_path)
    assert set(record["metrics"]) == VALIDATION | EPOCH
    assert record["protocols"]["usage/epoch"] == f"usage/training-epoch/tokens{3 * 4 * 64}"


def test_an_interrupted_run_says_so(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning swallows Ctrl-C; a half-trained model must not get a record."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "training_step", interrupt)
    experiment = tiny()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        train(experiment, "x", tmp_path)
    assert not records(experiment)


# ---- bad checkpoints


def test_a_checkpoint_of_another_experiment_is_not_continued(tiny: TinyExperiment, tmp_path: Path) -> None:
    train(tiny(), "x", tmp_path)
    with pytest.raises(ValueError, match=r"final\.ckpt: of another experiment \(seed=0, here 1\); delete it or"):
        train(tiny("vqgan", "seed=1"), "x", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not readable"), (b"garbage" * 99, "not readable"), ({"state_dict": {}}, "not a checkpoint of this suite")],
)
def test_a_file_that_is_no_checkpoint(tmp_path: Path, tiny: TinyExperiment, content: Any, message: str) -> None:
    path = tmp_path / "checkpoints/last.ckpt"
    path.parent.mkdir()
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=rf"last\.ckpt: {message}"):
        restore(path)
    with pytest.raises(ValueError, match=rf"last\.ckpt: {message}"):
        train(tiny(), "x", tmp_path)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"experiment": {}, "state_dict": {}, "module": VQGAN}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"evil\.ckpt: not readable"):
        restore(tmp_path / "evil.ckpt")


def test_a_checkpoint_whose_weights_do_not_fit(tiny: TinyExperiment, tmp_path: Path) -> None:
    experiment = tiny()
    train(experiment, "x", tmp_path)
    path = tmp_path / "checkpoints/final.ckpt"
    with pytest.raises(ValueError, match=r"final\.ckpt: the weights do not fit model 'vqgan': .*quantizer\.codes"):
        restore(path, {"model": {"codebook_size": 33}})
    with pytest.raises(ValueError, match=r"absent\.ckpt: no such checkpoint"):
        restore(tmp_path / "absent.ckpt")


# ---- data that cannot be had


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(CIFAR10, "download", no_network)


@pytest.mark.usefixtures("offline")
def test_cifar10_offline_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(PROJECT / "experiments/vqgan_cifar10.yaml")
    data_dir = f"runtime.data_dir={tmp_path / 'nothing'}"
    monkeypatch.setattr(sys, "argv", ["train", recipe, "--data", "cifar10", data_dir, f"runtime.output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as stop:
        experiments.train.main()
    output = capsys.readouterr()
    assert stop.value.code == 1
    assert output.err.startswith("error: CIFAR-10 cannot be downloaded") and "data_dir" in output.err
    assert "shapes instead" not in output.out, "an explicit choice never falls back"
    assert not [*tmp_path.glob("records/*")]


@pytest.mark.usefixtures("offline")
def test_auto_falls_back_loudly(tiny: TinyExperiment, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = resolve_data(tiny("vqgan", "data.name=cifar10"), "auto")
    assert (experiment.data.name, experiment.data.train_size, experiment.data.image_size) == ("shapes", 16, 16)
    assert "NO CIFAR-10" in capsys.readouterr().out


def test_auto_keeps_cifar10_where_it_is(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR10DataModule, "prepare_data", lambda self: pytest.fail("nothing to fetch"))
    for split in ("train", "test"):
        (tmp_path / "data/cifar10" / split).mkdir(parents=True)
    experiment = tiny("vqgan", "data.name=cifar10")
    assert resolve_data(experiment, "auto") is experiment


# ---- the terminal


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("key: wrong"), 1, "error: key: wrong\n"),
        (FileNotFoundError("no weights"), 1, "error: no weights\n"),
        (FloatingPointError("step 3: the l2 loss is nan"), 1, "error: step 3: the l2 loss is nan\n"),
        (OSError(28, "No space left on device", "a.ckpt"), 1, "the disk is full: free space"),
        (RuntimeError("PytorchStreamWriter failed writing file data.pkl"), 1, "the disk is full: free space"),
        (ValueError("of\ntwo lines"), 1, "error: of two lines\n"),
        (KeyboardInterrupt(), 130, "the same command continues"),
    ],
)
def test_mistakes_are_one_line(error: BaseException, code: int, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop, user_errors():
        raise error
    message = capsys.readouterr().err
    assert stop.value.code == code and text in message and len(message.strip().splitlines()) == 1


def test_defects_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"), user_errors():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")


def test_a_mistyped_key_ends_the_command_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(PROJECT / "experiments/vqgan_cifar10.yaml")
    monkeypatch.setattr(sys, "argv", ["train", recipe, "--data", "shapes", "model.codebok_size=4"])
    with pytest.raises(SystemExit) as stop:
        experiments.train.main()
    message = capsys.readouterr().err
    assert stop.value.code == 1 and message.count("\n") == 1
    assert "did you mean 'model.codebook_size'?" in message
