"""The behaviour of Lightning that each workaround corrects: a test fails once Lightning no longer needs it."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_modules.lightning_fixes import (
    AveragedWeights,
    count_last_step,
    leave_out_of_global_step,
    not_swallowed,
    resume_with_validation,
    true_epochs,
)

BATCHES = [torch.ones(2, 1) for _ in range(4)]  # an epoch


class Tiny(L.LightningModule):
    """One weight; notes at which steps it was validated, and its weight when a validation's epoch ended."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)
        self.validated: list[int] = []
        self.at_epoch_end: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(self.global_step)

    def on_validation_epoch_end(self) -> None:
        self.at_epoch_end.append(float(self.layer.weight))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TwoOptimizers(Tiny):
    """By hand, the second one as the discriminator's."""

    fixed = False

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
        first, second = self.optimizers()  # type: ignore[misc]
        if self.fixed:
            leave_out_of_global_step(second)
        for optimizer in (first, second):
            optimizer.zero_grad()
            self.manual_backward(self.layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    return L.Trainer(
        accelerator="cpu", max_epochs=-1, num_sanity_val_steps=0, callbacks=list(callbacks), **quiet | options
    )


def fit(module: L.LightningModule, steps: int, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    resumed = options.pop("ckpt_path", None)
    made = trainer(*callbacks, max_steps=steps, check_val_every_n_epoch=None, val_check_interval=3, **options)
    loader = DataLoader(BATCHES, batch_size=None)  # type: ignore[arg-type]
    made.fit(module, loader, loader, ckpt_path=resumed)
    return made


@pytest.mark.parametrize(
    ("callback", "is_averaged"),
    [(EMAWeightAveraging(decay=0.5, use_buffers=False), False), (AveragedWeights(0.5), True)],
)
def test_averaged_weights_stay_for_the_end_of_a_validation(callback: Any, is_averaged: bool) -> None:
    torch.manual_seed(0)
    module, weights = Tiny(), []

    class Notes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            weights.append(float(pl_module.layer.weight))

    fit(module, 3, Notes(), callback)
    assert (module.at_epoch_end[0] != pytest.approx(weights[-1])) == is_averaged


@pytest.mark.parametrize(("ramp", "decays"), [(False, [0.3] * 5), (True, [0.25, 0.3, 0.3, 0.3, 0.3])])
def test_the_decay_of_averaged_weights(ramp: bool, decays: list[float]) -> None:
    """By the closed form; the first update is a copy, the second one of a ramp has the decay 3 / 12."""
    torch.manual_seed(0)
    module, weights = Tiny(), []

    class Notes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
            weights.append(float(pl_module.layer.weight))

    fit(module, 6, Notes(), AveragedWeights(0.3, ramp))
    average = weights[0]
    for decay, weight in zip(decays, weights[1:], strict=True):
        average = decay * average + (1 - decay) * weight
    assert float(module.layer.weight) == pytest.approx(average, rel=1e-5)


@pytest.mark.parametrize(("fixed", "steps"), [(False, 2), (True, 4)])
def test_only_the_generators_steps_count(fixed: bool, steps: int) -> None:
    """Lightning reaches max_steps=4 after two batches, each of two optimizer steps."""
    module, seen = TwoOptimizers(), []
    module.fixed = fixed

    class Notes(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(trainer.global_step)

    fit(module, 4, Notes())
    assert len(seen) == steps


def test_an_epoch_that_goes_on_after_its_last_batch_is_counted_as_begun(tmp_path: Path) -> None:
    """Saved after the four batches of an epoch, and saved again two steps later: only one epoch was completed."""

    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step in (4, 6):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(Tiny(), 7, Save())
    fit(Tiny(), 7, Save(), ckpt_path=tmp_path / "4.ckpt")
    loop = torch.load(tmp_path / "6.ckpt", weights_only=False)["loops"]["fit_loop"]
    before = {key: dict(counts) for key, counts in loop["epoch_progress"].items()}
    assert true_epochs(loop) == 1
    after = loop["epoch_progress"]
    assert after["current"]["ready"] == after["current"]["started"] == 2 and before != after


@pytest.mark.parametrize("fixed", [False, True])
def test_a_validation_that_was_due_is_made_up_for(tmp_path: Path, fixed: bool) -> None:
    class Save(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "before.ckpt")

    class Resume(L.Callback):
        def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
            if fixed:
                resume_with_validation(trainer)

    fit(Tiny(), 3, Save())
    module = Tiny()
    fit(module, 5, Resume(), ckpt_path=tmp_path / "before.ckpt")
    assert (3 in module.validated) == fixed


def test_a_run_with_nothing_left_is_a_logged_step_behind(tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / "last.ckpt")

    straight = fit(Tiny(), 3, Save())
    again = fit(Tiny(), 3, ckpt_path=tmp_path / "last.ckpt")
    counts = [made.fit_loop.epoch_loop._batches_that_stepped for made in (straight, again)]
    assert counts == [3, 2]
    count_last_step(again)
    assert again.fit_loop.epoch_loop._batches_that_stepped == 3


@pytest.mark.parametrize("fixed", [False, True])
def test_ctrl_c_reaches_the_command(fixed: bool) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise KeyboardInterrupt

    if not fixed:
        with pytest.raises(SystemExit):
            fit(Tiny(), 3, Interrupt())
        return
    with pytest.raises(KeyboardInterrupt), not_swallowed():
        fit(Tiny(), 3, Interrupt())
