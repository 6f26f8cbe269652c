"""The screen before training."""

from types import SimpleNamespace

import pytest
import torch
from conftest import TinyExperiment

from experiments.config.compose import RECIPES, load_experiment
from experiments.costs.counts import setting_of
from experiments.pipeline import summary
from experiments.pipeline.build import build_model


def test_the_time_is_of_all_micro_batches_and_only_where_the_cpu_trains(
    tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, eight = (tiny("vqgan", "trainer.max_steps=600", f"model.optimizer.accumulate={n}") for n in (1, 8))
    assert summary.expected_time(one, 2.0) == {"expected time, rough": "20.0 min for 600 steps here, 32-true"}
    assert summary.expected_time(eight, 2.0) == {"expected time, rough": "160.0 min for 600 steps here, 32-true"}
    monkeypatch.setattr(summary, "num_devices", lambda _: 4)
    assert summary.expected_time(eight, 2.0) == {"expected time, rough": "40.0 min for 600 steps here, 32-true"}
    monkeypatch.setattr(summary, "device_of", lambda _: torch.device("cuda"))
    assert summary.seconds_of_batch(one, None) == 0
    assert summary.expected_time(one, 0.0) == {"steps": "600, 32-true"}


@pytest.mark.parametrize("name", ["vqgan_lc", "vit_vqgan", "vim", "sit", "ldm", "token_classifier"])
def test_what_is_timed_is_a_batch_and_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second time of 32 images counts, scaled to the batch of 48."""
    experiment = load_experiment(RECIPES / f"{name}_cifar10.yaml", ["data.batch_size=48"])
    module = build_model(experiment, setting_of(experiment))
    clock = iter([0.0, 100.0, 200.0, 203.0])
    monkeypatch.setattr(summary, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    before = torch.get_rng_state()
    assert summary.seconds_of_batch(experiment, module) == 4.5
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_the_perceptual_network_is_named(tiny: TinyExperiment, capsys: pytest.CaptureFixture[str]) -> None:
    for weight, name in ((0.1, "efficientnet-lite0"), (0.0, "none")):
        experiment = tiny("vqgan", f"model.loss.perceptual={weight}")
        summary.print_summary(experiment, build_model(experiment), "vqgan", "shapes")
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "perceptual loss" in line)
        assert name in line


def test_a_cpu_that_has_to_imitate_bf16_is_named(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, half = (tiny("vqgan", f"trainer.precision={name}") for name in ("32-true", "bf16-mixed"))
    for bf16, amx, is_slow in ((False, False, True), (True, False, False), (False, True, False)):
        found = {"architecture": "x86_64", "avx512_bf16": bf16, "amx_bf16": amx}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert ("32-true" in summary.slow_precision(half).get("precision", "")) == is_slow
        assert summary.slow_precision(plain) == {}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64"}, raising=False)
    assert summary.slow_precision(half) == {}
