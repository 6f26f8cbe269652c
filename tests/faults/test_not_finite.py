"""NaN in images, weights or an update stops a run with the step, the term, its origin and the last good checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from torch import Tensor
from vim_cases import tiny_vim

from experiments.pipeline.training import train
from lightning_modules import finite
from lightning_modules.finite import check_finite, first_not_finite, settle
from lightning_modules.pretrained import load_checkpoint
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM

NAN = float("nan")


def before_step(
    monkeypatch: pytest.MonkeyPatch, cls: Any, step: int, harm: Callable[[Any, dict[str, Tensor]], Any]
) -> None:
    training_step = cls.training_step

    def harmed(self: Any, batch: dict[str, Tensor], batch_idx: int) -> Any:
        if self.trainer.global_step == step:
            with torch.no_grad():
                harm(self, batch)
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(cls, "training_step", harmed)


def a_pixel(module: Any, batch: dict[str, Tensor]) -> None:
    batch["image"][1, 0, 2, 3] = NAN


def a_weight(module: Any, batch: dict[str, Tensor]) -> None:
    module.decoder.last_layer[0, 0] = NAN


def records(folder: Path) -> list[Path]:
    return [*folder.rglob("records/*.json")]


FSQ = ["model.quantizer={name: fsq, levels: [4, 4, 2]}", "model.code_dim=3"]


@pytest.mark.parametrize(
    ("harm", "options", "message"),
    [
        (a_pixel, [], r"step 2: the l2 loss is nan: 1 of the 4 images of its batch hold values"),
        (a_pixel, FSQ, r"step 2: the l2 loss is nan: 1 of the 4 images of its batch hold values"),
        (a_weight, [], r"step 2: the l2 loss is nan: the weights 'decoder\.[\w.]+' are not finite already; lower"),
    ],
    ids=["image", "image, no loss of the quantizer", "weight"],
)
def test_a_run_stops_and_names_its_last_checkpoint(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Any, options: list[str], message: str
) -> None:
    before_step(monkeypatch, Tokenizer, 2, harm)
    experiment = tiny("vqgan", "trainer.checkpoint_every=1", *options)
    last = tmp_path / "run/checkpoints/last.ckpt"
    with pytest.raises(FloatingPointError, match=rf"{message}.*; the last good checkpoint is {last}, of step 2$"):
        train(experiment, "x", tmp_path / "run")
    checkpoint = load_checkpoint(last)
    assert checkpoint["global_step"] == 2 and not first_not_finite(checkpoint["state_dict"])
    assert not records(tmp_path)


def test_an_update_that_ruins_the_weights_is_not_saved(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step's loss is finite, and no step comes after it to see what its update has done."""
    update = Tokenizer.update

    @contextmanager
    def ruinous(self: Tokenizer, *arguments: Any, **options: Any) -> Iterator[None]:
        with update(self, *arguments, **options):
            yield
        if self.step == 2:
            with torch.no_grad():
                self.pre_quant.bias[0] = float("inf")

    monkeypatch.setattr(Tokenizer, "update", ruinous)
    with pytest.raises(
        FloatingPointError, match=r"step 3: the weights 'pre_quant\.bias' are not finite; .*no checkpoint"
    ):
        train(tiny(), "x", tmp_path / "run")
    assert not [*tmp_path.rglob("*.ckpt")] and not records(tmp_path)


def test_a_transformer_stops_too(tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def harm(module: VIM, batch: dict[str, Tensor]) -> None:
        module.gpt.head.weight[3] = NAN

    before_step(monkeypatch, VIM, 1, harm)
    experiment = tiny_vim(tiny, "model.generation.num_samples=0", "trainer.checkpoint_every=1")
    with pytest.raises(FloatingPointError, match=r"step 1: the token loss is nan: the weights 'gpt.*, of step 1$"):
        train(experiment, "x", tmp_path / "run")


def test_finite_terms_pass_and_the_first_bad_one_is_named() -> None:
    good, bad = torch.tensor(1.0), torch.tensor(-torch.inf)
    check_finite(0, {"l1": good}, torch.full((2, 3), NAN), torch.nn.Linear(1, 1))
    with pytest.raises(FloatingPointError, match=r"step 7: the l2 loss is -inf; lower optimizer\.lr"):
        check_finite(7, {"l1": good, "l2": bad, "r1": bad}, torch.zeros(2, 3), torch.nn.Linear(1, 1))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is ahead of the device, as on a GPU."""
    monkeypatch.setattr(finite, "comes_later", lambda values: True)


@pytest.mark.usefixtures("late")
def test_on_a_gpu_a_loss_is_looked_at_some_losses_later() -> None:
    good, bad, module = torch.tensor(1.0), torch.tensor(torch.inf), torch.nn.Linear(1, 1)
    check_finite(0, {"l1": good, "l2": bad}, torch.full((2, 3), NAN), module)
    for step in range(1, finite.LAG):
        check_finite(step, {"l1": bad}, None, module)
    with pytest.raises(FloatingPointError, match=r"step 0: the l2 loss is inf: 2 of the 2 images of its batch"):
        check_finite(finite.LAG, {"l1": good}, None, module)
    settle(module)  # later ones are forgotten
    check_finite(9, {"l1": bad}, None, module)
    with pytest.raises(FloatingPointError, match=r"step 9: the l1 loss is inf; lower optimizer\.lr"):
        settle(module)
    settle(torch.nn.Linear(1, 1))


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("step", [0, 2])
def test_on_a_gpu_nothing_is_saved_after_it(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """Also where the run ends before its turn comes."""
    before_step(monkeypatch, Tokenizer, step, a_pixel)
    message = rf"step {step}: the l2 loss is nan: 1 of the 4 images of its batch hold values.*no checkpoint"
    with pytest.raises(FloatingPointError, match=message):
        train(tiny("vqgan"), "x", tmp_path / "run")
    assert not [*tmp_path.rglob("*.ckpt")] and not records(tmp_path)
