"""The classifier of rejection sampling: its head, its file, and which one is taken."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import TinyExperiment
from PIL import Image
from torch import Tensor

from datamodules import ImageDataModule
from experiments.pipeline import classifier as classifier_module
from experiments.pipeline.build import build_data
from experiments.pipeline.classifier import PAPER, classifier_for
from lightning_modules.metrics.classifier import TimmClassifier, fit_head


def imagenet(images: ImageDataModule) -> ImageDataModule:
    images.classes = [f"n{number:08d}" for number in range(1000)]  # type: ignore[attr-defined]
    return images


# ---- the head


def test_the_head_separates_what_a_line_can() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    features = torch.randn(90, 8, generator=generator) + 4 * torch.eye(8)[labels]
    state = torch.get_rng_state()
    head = fit_head(features, labels, 3)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        assert (head(features).argmax(1) == labels).float().mean() > 0.98
        other = fit_head(1000 * features + 7, labels, 3)
        torch.testing.assert_close(other(1000 * features + 7), head(features), rtol=1e-2, atol=1e-2)


# ---- made once


def test_it_is_trained_once_and_says_how_good_it_is(
    tiny: TinyExperiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny("vqgan", "data.train_size=100", "data.val_size=40")
    images = build_data(experiment)
    first = classifier_for("auto", experiment, images)
    assert "a classifier of shapes, efficientnet-lite0 with a linear head, is trained" in capsys.readouterr().out
    (path,) = (Path(experiment.runtime.output_dir) / "classifiers").glob("*.pt")
    saved = torch.load(path, weights_only=True)
    assert saved["num_images"] == 40
    assert first.id == f"efficientnet-lite0@64px-head-top1-{100 * saved['accuracy']:.1f}"
    right, scores = 0, []
    for batch in images.val_dataloader():
        logits = first.logits(batch["image"])
        right += int((logits.argmax(1) == batch["label"]).sum())
        scores.append(first(batch["image"], batch["label"]))
        assert torch.equal(scores[-1], logits.softmax(1)[torch.arange(len(logits)), batch["label"]])
    assert right / 40 == saved["accuracy"] > 0.2, "chance is 0.1"
    assert not first.state_dict() and not [*first.parameters()]

    monkeypatch.setattr(classifier_module, "make", lambda *_: pytest.fail("it is there"))
    again = classifier_for("efficientnet-lite0", experiment, images)
    batch = next(iter(images.val_dataloader()))
    assert torch.equal(again(batch["image"], batch["label"]), scores[0]) and again.id == first.id
    assert "validation images right" in capsys.readouterr().out
    path.write_bytes(b"x")
    with pytest.raises(ValueError, match=r"\.pt: not readable .*: delete it"):
        classifier_for("auto", experiment, images)


# ---- which one


def test_public_classifiers_know_imagenet_alone(tiny: TinyExperiment) -> None:
    experiment = tiny()
    images = build_data(experiment)
    with pytest.raises(ValueError, match=r"'timm:resnet18' knows ImageNet's 1,000 classes, shapes has others"):
        classifier_for("timm:resnet18", experiment, images)
    with pytest.raises(ValueError, match="no pretrained model of this name"):
        classifier_for("timm:resnet_nothing", experiment, imagenet(images))


def test_imagenet_is_known_by_its_folders(tiny: TinyExperiment, monkeypatch: pytest.MonkeyPatch) -> None:
    images = imagenet(build_data(tiny()))
    taken: list[str] = []
    monkeypatch.setattr(classifier_module, "TimmClassifier", taken.append)
    classifier_module.encoder_for("auto", images)
    assert [f"timm:{name}" for name in taken] == [PAPER]
    assert classifier_module.encoder_for("efficientnet-lite0", images).name == "efficientnet-lite0"
    images.classes = images.classes[1:]  # type: ignore[attr-defined]
    assert classifier_module.encoder_for("auto", images).name == "efficientnet-lite0"


def test_on_imagenet_efficientnet_needs_no_head(tiny: TinyExperiment) -> None:
    experiment = tiny("vqgan", "data.val_size=4")
    classifier = classifier_for("efficientnet-lite0", experiment, imagenet(build_data(experiment)))
    assert classifier.id.startswith("efficientnet-lite0@64px-top1-")
    assert classifier.logits(torch.zeros(1, 3, 16, 16)).shape == (1, 1000)


def test_a_timm_model_sees_images_as_timm_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **kw: create(name, pretrained=False, **kw))
    encoder = TimmClassifier("resnet18.tv_in1k")
    assert encoder.name == "timm:resnet18.tv_in1k" and encoder.input_size == 224 and encoder.resized == 256
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, 20, 20, generator=generator)
    image = (torch.nn.functional.interpolate(small, (200, 200), mode="bicubic").clamp(0, 1) * 255).round()
    options: dict[str, Any] = timm.data.resolve_model_data_config(encoder.network)
    expected = timm.data.create_transform(**options)(Image.fromarray(image[0].permute(1, 2, 0).byte().numpy()))
    actual: Tensor = encoder.preprocess(image / 127.5 - 1)
    assert actual.shape == (1, 3, 224, 224)
    assert (actual[0] - expected).abs().max() < 0.05, "PIL rounds to whole numbers"
    assert encoder.pool_and_logits(image / 127.5 - 1)[1].shape == (1, 1000)
