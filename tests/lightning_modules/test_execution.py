"""How networks are run: memory formats, compilation, float16. None changes a name in a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyExperiment
from torch import Tensor
from vim_cases import tiny_vim

from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, build_model
from experiments.runtime.trainer import build_trainer
from lightning_modules import execution
from lightning_modules.tokenizer import Tokenizer

GAME = "model.loss={l1: 1, adversarial: 0.5, perceptual: 0.1, discriminator_start: 1, adversarial_start: 2}"
STEPS = "trainer.max_steps=5"


@pytest.fixture
def by_eager(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile without code generation, which takes a minute; the calls that it is given."""
    compiled: list[Any] = []
    compile = torch.compile

    def quick(call: Any, **options: Any) -> Any:
        compiled.append(call)
        return compile(call, backend="aot_eager", **options)

    monkeypatch.setattr(execution.torch, "compile", quick)
    return compiled


class Run:
    """A training: its module, the losses at each step, and the last checkpoint."""

    def __init__(self, experiment: Experiment, folder: Path, resumed: Path | None = None) -> None:
        torch.manual_seed(0)
        self.module: Tokenizer = build_model(experiment)
        trainer = build_trainer(experiment, self.module, folder)
        trainer.fit(self.module, build_data(experiment), ckpt_path=resumed, weights_only=True)
        self.metrics = {name: float(value) for name, value in trainer.logged_metrics.items()}
        self.checkpoint = folder / "end.ckpt"
        trainer.save_checkpoint(self.checkpoint)


def close(a: dict[str, Tensor], b: dict[str, Tensor], **tolerance: float) -> None:
    assert list(a) == list(b)
    for name in a:
        torch.testing.assert_close(a[name], b[name], msg=lambda text, name=name: f"{name}: {text}", **tolerance)


OPTIONS = {
    "channels_last": "trainer.memory_format=channels_last",
    "compiled": "trainer.compile=networks",
    "float16": "trainer.precision=16-mixed",
}


@pytest.mark.parametrize("model", ["vqgan", "vit_vqgan"])
@pytest.mark.parametrize("option", ["channels_last", "compiled"])
def test_numbers_and_names_stay(
    tiny: TinyExperiment, tmp_path: Path, by_eager: list[Any], model: str, option: str
) -> None:
    keys = [GAME, STEPS, "model.optimizer.eps=1e-3"]
    plain = Run(tiny(model, *keys), tmp_path)
    other = Run(tiny(model, *keys, OPTIONS[option]), tmp_path)
    assert other.metrics == pytest.approx(plain.metrics, rel=1e-3, abs=1e-5)
    close(other.module.state_dict(), plain.module.state_dict(), rtol=1e-3, atol=1e-4)
    assert len(by_eager) == (4 if option == "compiled" else 0)
    image = torch.rand(3, 3, 16, 16)
    output = [run.module.eval()(image).reconstruction for run in (plain, other)]
    torch.testing.assert_close(*output, rtol=1e-3, atol=1e-3)


def test_channels_last_reaches_every_convolution(tiny: TinyExperiment, tmp_path: Path) -> None:
    module = Run(tiny("vqgan", GAME, OPTIONS["channels_last"]), tmp_path).module
    weights = [p for p in (*module.parameters(), *module.perceptual.network.parameters()) if p.ndim == 4]
    assert len(weights) > 50 and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
    image = torch.rand(2, 3, 16, 16)
    features = module.decoder.features(module.post_quant(module.encode(image).quantized))
    assert features.is_contiguous(memory_format=torch.channels_last)


def test_with_r1_the_discriminator_is_not_compiled(tiny: TinyExperiment, tmp_path: Path, by_eager: list[Any]) -> None:
    Run(tiny("vit_vqgan", GAME, "model.loss.r1=1", "model.loss.r1_every=1", OPTIONS["compiled"], STEPS), tmp_path)
    assert len(by_eager) == 3


def test_evaluation_is_not_compiled(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches have other shapes: each would be compiled anew."""
    monkeypatch.setattr(execution.torch, "compile", lambda *_, **__: lambda _: "compiled")
    encoder = build_model(tiny("vqgan")).encoder
    call = execution.compiled_in_training(encoder, encoder.forward)
    assert call(image := torch.rand(2, 3, 16, 16)) == "compiled"
    encoder.eval()
    assert call(image).shape == (2, 8, 8, 16)


def test_what_cannot_be_compiled_is_refused(tiny: TinyExperiment) -> None:
    with pytest.raises(ValueError, match="compile='inductor' is none of none, networks"):
        tiny("vqgan", "trainer.compile=inductor")
    with pytest.raises(ValueError, match=r"trainer\.compile=networks is for tokenizers, not for vim"):
        tiny_vim(tiny, "trainer.compile=networks")


@pytest.mark.parametrize("accumulate", [1, 2])
def test_float16_learns_as_float32(tiny: TinyExperiment, tmp_path: Path, accumulate: int) -> None:
    keys = [GAME, STEPS, "model.optimizer.eps=1e-3", "model.optimizer.gradient_clip=0.1"]
    keys.append(f"model.optimizer.accumulate={accumulate}")
    plain = Run(tiny("vqgan", *keys), tmp_path)
    half = Run(tiny("vqgan", *keys, OPTIONS["float16"]), tmp_path)
    assert half.metrics == pytest.approx(plain.metrics, rel=0.1, abs=0.02) and half.metrics != plain.metrics
    close(half.module.state_dict(), plain.module.state_dict(), rtol=0.1, atol=0.02)


def test_each_optimizer_has_its_scale(tiny: TinyExperiment, tmp_path: Path) -> None:
    """A step whose gradients overflow is left out, and its optimizer's scale alone is halved; checkpoints keep both."""
    experiment = tiny("vqgan", GAME, STEPS, OPTIONS["float16"])
    run = Run(experiment, tmp_path)
    plugin = run.module.trainer.precision_plugin
    assert len(plugin.scalers) == 2
    saved = torch.load(run.checkpoint, weights_only=True)["ScalerEach"]["scalers"]
    assert [state["_growth_tracker"] for state in saved] == [5, 4], "the discriminator begins a step later"
    discriminator = [*run.module.discriminator.parameters()]
    before = [parameter.clone() for parameter in discriminator]
    optimizer = run.module.optimizers()[1]
    with run.module.update(optimizer, 0, by_ddp=False):
        run.module.manual_backward(1e36 * sum(parameter.sum() for parameter in discriminator))
    assert all(parameter.equal(value) for parameter, value in zip(discriminator, before, strict=True))
    assert [scaler.get_scale() for scaler in plugin.scalers] == [2.0**16, 2.0**15]


@pytest.mark.parametrize("option", OPTIONS)
def test_a_continued_run_has_the_same_bits(
    tiny: TinyExperiment, tmp_path: Path, by_eager: list[Any], option: str
) -> None:
    keys = [GAME, OPTIONS[option], "model.loss.adaptive_every=2", "trainer.weight_ema=0.5", "trainer.max_steps=6"]
    keys.append("trainer.checkpoint_every=4")
    whole = Run(tiny("vqgan", *keys), tmp_path)
    assert torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    continued = Run(tiny("vqgan", *keys), tmp_path, tmp_path / "checkpoints/last.ckpt")
    for name, value in whole.module.state_dict().items():
        assert value.equal(continued.module.state_dict()[name]), name
