"""Classifiers for rejection sampling (paper A, Table 6): which generated images look most like their class.

Shapes: B images, N training images, H x W pixels, D features, C classes.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2.functional import center_crop

from lightning_modules.frozen import FrozenModule
from lightning_modules.networks.encoders import PretrainedEncoder, TimmEncoder

DECAY = 0.1  # of a head's weights for features of unit variance; by held-out training images of CIFAR-10


class LabelClassifier(FrozenModule):
    """p(label | image) by an encoder's ImageNet logits, or by a linear `head` on its pooled features.

    `id` names network, head and accuracy, as protocol ids do; `set_accuracy` completes it.
    """

    def __init__(self, encoder: PretrainedEncoder, head: nn.Linear | None = None) -> None:
        super().__init__(nn.ModuleDict({"encoder": encoder} | ({} if head is None else {"head": head})))
        self.id = f"{encoder.name}@{encoder.input_size}px" + ("" if head is None else "-head")

    def set_accuracy(self, accuracy: float) -> None:
        """`accuracy`: the share of images that it classifies correctly, in [0, 1]."""
        self.id = f"{self.id}-top1-{100 * accuracy:.1f}"

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, C)."""
        if next(self.network.parameters()).device != images.device:
            self.to(images.device)
        pooled, logits = self.network["encoder"].pool_and_logits(images)  # (B, D), (B, 1000)
        return self.network["head"](pooled) if "head" in self.network else logits

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """p(label) of images (B, 3, H, W) in [-1, 1] with labels (B,): (B,)."""
        return self.logits(images).softmax(1).gather(1, labels[:, None])[:, 0]


class TimmClassifier(TimmEncoder):
    """A timm classifier of ImageNet, such as `resnet101.tv_in1k` (paper A's ResNet-101), with its own resize and crop.

    Raises:
        ValueError: timm has no such model, no weights for it, or it is no ImageNet classifier.
        FileNotFoundError: the weights are not on disk and cannot be downloaded.
    """

    def __init__(self, model: str) -> None:
        cfg = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
        super().__init__(model, cfg.input_size[-1] if cfg else 224)
        if not self.is_classifier:
            raise ValueError(f"classifier 'timm:{model}' was not trained on ImageNet's 1,000 classes")
        config: dict[str, Any] = timm.data.resolve_model_data_config(self.network)
        self.resized = round(self.input_size / config["crop_pct"])
        self.mode = config["interpolation"] if config["interpolation"] in ("bilinear", "bicubic") else "bicubic"

    def preprocess(self, images: Tensor) -> Tensor:
        """Square images (B, 3, H, W) in [-1, 1], resized, their centre cut out, normalised."""
        if images.shape[-1] != self.resized:
            size = (self.resized, self.resized)
            images = F.interpolate(images, size, mode=self.mode, align_corners=False, antialias=True)
        return ((center_crop(images, [self.input_size, self.input_size]) + 1) / 2 - self.mean) / self.std


def fit_head(features: Tensor, labels: Tensor, num_classes: int, steps: int = 100) -> nn.Linear:
    """Logistic regression of labels (N,) on features (N, D) by L-BFGS; draws no random numbers.

    The features are standardised for the fit, and the result is for plain ones.
    """
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)  # (D,)
    x = (features - mean) / std
    weight = torch.zeros(num_classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), labels) + DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    head = nn.utils.skip_init(nn.Linear, x.shape[1], num_classes)
    with torch.no_grad():
        head.weight.copy_(weight / std)
        head.bias.copy_(bias - (weight / std) @ mean)
    return head
