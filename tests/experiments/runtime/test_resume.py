"""A run that is killed at any moments ends with the same bits as a run that was never stopped."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyExperiment
from resume_cases import Driver, differences, final, recipe, record
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vim_cases import tiny_vim

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge

SIGKILL = -9
TOKENIZER, VIM, PROBE = (
    f"lightning_modules.{name}" for name in ("tokenizer:Tokenizer", "vim:VIM", "linear_probe:LinearProbe")
)

CODEBOOKS = "experiments.pipeline.codebooks"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(tmp_path_factory.mktemp("driver"))
    yield driver
    driver.close()


class Runs:
    """One experiment, run without a stop, and in another folder killed and started again by the same command."""

    def __init__(self, driver: Driver, experiment: Experiment, folder: Path) -> None:
        self.driver, self.experiment, self.folder = driver, experiment, folder
        self.recipe = recipe(experiment, folder / "recipe.yaml")
        self.record = Path(experiment.runtime.output_dir) / f"records/{experiment.digest()}.shapes.json"
        straight = driver.run("experiments.train", self.recipe, "--run-dir", str(folder / "straight"))
        assert straight.code == 0, straight.output
        self.expected = final(folder / "straight"), record(self.record)
        self.record.unlink()

    def again(self, *arm: Any, **more: Any) -> Any:
        command = [self.recipe, "--run-dir", str(self.folder / "killed")]
        return self.driver.run("experiments.train", *command, arm=list(arm), **more)

    def killed(self, *arm: Any) -> None:
        result = self.again(*arm)
        assert result.code == SIGKILL and not self.record.exists(), (arm, result.output)

    def finish(self) -> None:
        result = self.again()
        assert result.code == 0, result.output
        found = final(self.folder / "killed"), record(self.record)
        assert differences(found, self.expected) == []
        left = sorted(path.name for path in (self.folder / "killed/checkpoints").iterdir())
        assert left == ["final.ckpt"], "no half file"


def curve(folder: Path, tag: str) -> dict[int, float]:
    """What TensorBoard shows at each step."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


# 16 images in batches of 4: four steps an epoch. Checkpoints after steps 2, 3 (a validation of three batches follows),
# 4, 6 (again), 8 and 9 (again).
STEPS = ["trainer.max_steps=9", "trainer.checkpoint_every=2", "trainer.validate_every=3", "data.flip=true"]
STEPS += ["data.val_batch_size=5"]


def test_killed_everywhere(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """A GAN, whose two optimizers and game begin at different steps."""
    game = (
        "model.loss={adversarial: 0.1, discriminator_start: 2, adversarial_start: 4, perceptual: 1, adaptive_every: 3}"
    )
    runs = Runs(driver, tiny("vqgan", *STEPS, game), tmp_path)
    runs.killed(f"{TOKENIZER}.training_step", 2, "kill")  # nothing saved yet
    runs.killed(f"{TOKENIZER}.validation_step", 2, "kill")  # after step 3
    runs.killed(f"{TOKENIZER}.validation_step", 1, "kill")  # where it goes on
    runs.killed("half a save", 1)  # after step 4, an epoch's end
    assert (tmp_path / "killed/checkpoints/last.ckpt.partial").is_file()
    runs.killed(f"{TOKENIZER}.training_step", 3, "kill")  # after step 5: it begins at 3
    runs.killed("experiments.runtime.files:os.replace", 1, "kill")  # step 6 is written, but not in its place
    runs.killed(f"{TOKENIZER}.training_step", 5, "kill")  # after 8 and its checkpoint
    runs.killed(f"{TOKENIZER}.on_validation_epoch_end", 1, "kill")  # of step 9, before final.ckpt
    runs.killed("half a save", 1)  # final.ckpt
    runs.killed(f"{TOKENIZER}.validation_step", 2, "kill")  # of the evaluation
    runs.killed("experiments.pipeline.training:write_json", 1, "kill")
    runs.finish()
    for tag in ("val/psnr", "val/rfid", "val/usage"):
        expected = curve(tmp_path / "straight", tag)
        assert [*expected] == [2, 5, 8, 9], "Lightning counts from 0; the last is the evaluation"
        assert expected.pop(8) == expected[9], "killed, it is not made again: the evaluation measures the same"
        assert curve(tmp_path / "killed", tag) == expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vqgan_ema", ["trainer.weight_ema=0.5", "model.quantizer.dead_code_threshold=0.9", "data.train_size=18"]),
        ("vqgan_lc", ["model.optimizer.warmup_steps=5", "model.quantizer.source.method=kmeans"]),
        ("vit_vqgan", ["model.loss={adversarial: 0.1, adversarial_loss: non_saturating, r1: 1, r1_every: 2}"]),
    ],
)
def test_every_tokenizer(driver: Driver, tiny: TinyExperiment, tmp_path: Path, name: str, options: list[str]) -> None:
    runs = Runs(driver, tiny(name, *STEPS, *options), tmp_path)
    runs.killed(f"{TOKENIZER}.validation_step", 2, "kill")  # after step 3
    runs.killed(f"{TOKENIZER}.training_step", 5, "kill")  # after step 7, in the next epoch
    runs.killed(f"{TOKENIZER}.on_validation_epoch_end", 1, "kill")  # of step 9, the last
    runs.finish()


def test_every_single_step(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """Two micro-batches a step, five batches an epoch: the last of each is left over."""
    options = ["trainer.max_steps=5", "trainer.checkpoint_every=1", "data.train_size=20", "data.flip=true"]
    options += ["model.optimizer.accumulate=2", "trainer.weight_ema=0.7", "model.loss.adversarial=0.1"]
    runs = Runs(driver, tiny("vqgan", *options), tmp_path)
    for micro_batch in (3, 4, 3, 4):  # of the next step but one: each process gets one step further
        runs.killed(f"{TOKENIZER}.training_step", micro_batch, "kill")
    runs.finish()


def test_stage_two(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """Dropout, dropped labels, random tokens and two views draw numbers; a validation generates images."""
    options = [
        "trainer.max_steps=7",
        "trainer.checkpoint_every=2",
        "trainer.validate_every=5",
        "trainer.weight_ema=0.5",
    ]
    options += ["model.label_dropout=0.3", "model.keep_tokens=0.8", "data.flip=true", "model.optimizer.warmup_steps=3"]
    runs = Runs(driver, tiny_vim(tiny, *options), tmp_path)
    runs.killed(f"{VIM}.training_step", 4, "kill")  # after step 3, in the first epoch
    runs.killed(f"{VIM}.sample", 2, "kill")  # of the images of step 5's validation
    runs.killed("half a save", 1)  # after 6
    runs.finish()
    assert curve(tmp_path / "killed", "val/fid") == curve(tmp_path / "straight", "val/fid")


def test_a_probe(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    below = tiny("vqgan", "trainer.max_steps=1")
    data: dict[str, Any] = {"name": "shapes", "image_size": 16, "train_size": 40, "val_size": 12, "flip": True}
    data |= {"batch_size": 10, "val_batch_size": 5}
    values: dict[str, Any] = {
        "data": data,
        "model": {"name": "linear_probe", "features": "latents", "heldout": 0.25, "normalize": True},
        "trainer": {"max_steps": 8, "checkpoint_every": 4, "validate_every": 3, "log_every": 1},
        "runtime": vars(below.runtime),
        "upstream": {"recipe": "vqgan_cifar10.yaml", **below.identity()},
    }
    runs = Runs(driver, parse(merge(values, from_dotlist([])), "probe"), tmp_path)
    runs.killed(f"{PROBE}.validation_step", 4, "kill")  # after step 3, with the second loader
    runs.killed(f"{PROBE}.training_step", 3, "kill")  # after 5
    runs.killed(f"{PROBE}.on_validation_epoch_end", 2, "kill")  # after 6 and its checkpoint
    runs.finish()


def test_a_codebook(driver: Driver, tiny: TinyExperiment, tmp_path: Path) -> None:
    """Features of 40 images in five batches, then k-means in chunks; killed in each, and while a state is written."""
    source = "model.quantizer.source"
    experiment = tiny("vqgan_lc", f"{source}.method=kmeans", f"{source}.iterations=4", "data.val_batch_size=8")
    command = ["experiments.build_codebook", recipe(experiment, tmp_path / "recipe.yaml")]
    settings = {"experiments.runtime.appending:SAVE_SECONDS": 0, f"{CODEBOOKS}.kmeans:SAVE_SECONDS": 0}
    settings[f"{CODEBOOKS}.kmeans:CHUNK"] = 8

    def build(folder: str, *arm: Any) -> Any:
        where = [f"runtime.output_dir={tmp_path / folder}", "--out", str(tmp_path / f"{folder}.safetensors")]
        return driver.run(*command, *where, arm=list(arm), settings=settings)

    assert build("straight").code == 0
    arms = [
        (f"{CODEBOOKS}.extraction:patch_features", 4, "kill"),
        (f"{CODEBOOKS}.extraction:Path.rename", 1, "kill"),  # the features are whole, but not in their place
        ("half a save", 3),
        (f"{CODEBOOKS}.kmeans:move_centres", 2, "kill"),
        (f"{CODEBOOKS}.build:save", 1, "kill"),
    ]
    for arm in arms:
        result = build("killed", *arm)
        assert result.code == SIGKILL and not (tmp_path / "killed.safetensors").exists(), (arm, result.output)
        if arm[0] == "half a save":
            stopped = build("killed", f"{CODEBOOKS}.kmeans:one_pass", 1, "term")
            assert stopped.code == 143 and "stopped by SIGTERM: the clustering, " in stopped.output
    assert build("killed").code == 0
    assert (tmp_path / "killed.safetensors").read_bytes() == (tmp_path / "straight.safetensors").read_bytes()
    left = {path.name for path in tmp_path.glob("*") if "killed" in path.name}
    assert left == {"killed", "killed.safetensors"}, "no half file"
