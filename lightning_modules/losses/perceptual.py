"""Perceptual losses: distances of images as a frozen pretrained network sees them.

Shapes: B images, H x W pixels, C_i x h_i x w_i feature maps of stage i.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_modules.frozen import FrozenModule
from lightning_modules.hub import fetch_hub_file
from lightning_modules.networks.encoders import load_encoder

PERCEPTUAL_NETWORKS = ("lpips-vgg", "lpips-alex", "efficientnet-lite0", "none")
LPIPS_URLS = {  # torchvision's IMAGENET1K_V1 weights
    "vgg": "https://download.pytorch.org/models/vgg16-397923af.pth",
    "alex": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
}


class PerceptualLoss(FrozenModule):
    """Mean perceptual distance of a batch; `name` says by which network. This one is "none", always 0."""

    def __init__(self, name: str = "none", network: nn.Module | None = None) -> None:
        super().__init__(network)
        self.name = name

    def distance(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], twice -> the distance of each pair (B,)."""
        return reconstruction.new_zeros(len(reconstruction))

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1], twice -> mean distance, a scalar with a gradient to the reconstruction."""
        return self.distance(reconstruction, image).mean()


class LPIPSLoss(PerceptualLoss):
    """LPIPS v0.1 of Zhang et al. 2018. taming, A and B train with `vgg`; B's metric is `alex`.

    Args:
        net: "vgg" or "alex".
        pretrained: False gives a random backbone that needs no file, for tests.

    Raises:
        ValueError: another `net`.
        FileNotFoundError: torchvision's weights of the backbone are not on disk and cannot be downloaded.
    """

    def __init__(self, net: str = "vgg", pretrained: bool = True) -> None:
        if net not in LPIPS_URLS:
            raise ValueError(f'LPIPS: no network "{net}". Choose one of {", ".join(LPIPS_URLS)}.')
        if pretrained:
            fetch_hub_file(LPIPS_URLS[net], 'use "efficientnet-lite0", whose weights come with a Python package')
        import lpips

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)  # lpips calls torchvision the old way
            network = lpips.LPIPS(net=net, pnet_rand=not pretrained, verbose=False)
        super().__init__(f"lpips-{net}", network)

    def distance(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        return self.network(reconstruction, image).flatten()  # (B, 1, 1, 1) -> (B,)


class EncoderFeatureLoss(PerceptualLoss):
    """LPIPS without its learned weights, on EfficientNet-Lite0 (ImageNet), for where no VGG can be had.

    Each stage's features are normalised to unit length over channels; the squared differences are summed over
    channels, averaged over positions, and averaged over the stages. In [0, 4]. Its values are not comparable
    with LPIPS's.

    Args:
        image_size: the network sees images at this size; the images' own, so that nothing is resampled.
        num_stages: how many stages, from the first, are compared.
    """

    def __init__(self, image_size: int, num_stages: int = 4) -> None:
        super().__init__("efficientnet-lite0", load_encoder("efficientnet-lite0", image_size))
        self.num_stages = num_stages

    def distance(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.network.stages(image, self.num_stages)  # [(B, C_i, h_i, w_i)]
        features = self.network.stages(reconstruction, self.num_stages)  # [(B, C_i, h_i, w_i)]
        distances = []
        for feature, target in zip(features, targets, strict=True):
            difference = F.normalize(feature, dim=1) - F.normalize(target, dim=1)
            distances.append(difference.square().sum(dim=1).mean(dim=(1, 2)))  # (B,)
        return torch.stack(distances).mean(dim=0)  # (B,)


def build_perceptual(name: str, image_size: int, pretrained: bool = True) -> PerceptualLoss:
    """The perceptual loss of this name, for square images of `image_size`.

    LPIPS-VGG is the papers' choice; EfficientNet-Lite0 needs no download. `pretrained=False` gives LPIPS random
    weights, to count it by.

    Raises:
        ValueError: the name is not in `PERCEPTUAL_NETWORKS`.
        FileNotFoundError: weights are missing (see `LPIPSLoss`).
    """
    if name == "none":
        return PerceptualLoss()
    if name == "efficientnet-lite0":
        return EncoderFeatureLoss(image_size)
    if name in ("lpips-vgg", "lpips-alex"):
        return LPIPSLoss(name.removeprefix("lpips-"), pretrained)
    raise ValueError(f'No perceptual network "{name}". Choose one of {", ".join(PERCEPTUAL_NETWORKS)}.')
