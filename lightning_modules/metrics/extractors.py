"""The networks that FID, IS, KID and precision/recall stand on. Numbers of two extractors never compare.

Shapes: B images, H x W pixels, D features, C classes.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lightning_modules.frozen import FrozenModule
from lightning_modules.hub import fetch_hub_file, hub_file
from lightning_modules.networks.encoders import EFFICIENTNETS, load_encoder

JUDGE = "efficientnet-lite2"  # it trains nothing: losses, codebooks and classifiers are of EfficientNet-Lite0
REGISTERED = (  # torch-fidelity's others
    "vgg16",
    *(f"clip-{size}" for size in ("vit-b-32", "vit-b-16", "vit-l-14", "vit-l-14-336px", "rn50", "rn101", "rn50x4")),
    *(f"dinov2-vit-{size}-14" for size in "sblg"),
)
EXTRACTORS = ("auto", "inception-v3-compat", *EFFICIENTNETS, *REGISTERED)


class FidelityExtractor(FrozenModule, ABC):
    """uint8 images -> features and class logits. `id` names network and input size, as protocol ids do.

    A network that knows no classes has C = 0: no Inception Score can be had of it.
    """

    def __init__(self, id: str, network: nn.Module) -> None:
        super().__init__(network)
        self.id = id

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) uint8 -> features (B, D), logits (B, C)."""


class InceptionExtractor(FidelityExtractor):
    """The papers' extractor, TensorFlow's 2015 Inception as torch-fidelity ports it: D = 2048, C = 1008."""

    def __init__(self) -> None:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

        path = fetch_hub_file(URL_INCEPTION_V3, f'use the extractor "{JUDGE}", which needs no download')
        layers = ["2048", "logits_unbiased"]  # torch-fidelity's defaults for FID and for IS
        network = FeatureExtractorInceptionV3("inception-v3-compat", layers, feature_extractor_weights_path=str(path))
        super().__init__("inception-v3-compat@299px", network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network(images)
        return features, logits


class EfficientNetExtractor(FidelityExtractor):
    """An EfficientNet-Lite, which needs no download, on images resized to `input_size`: D = 1280, C = 1000."""

    def __init__(self, name: str, input_size: int) -> None:
        super().__init__(f"{name}@{input_size}px", load_encoder(name, input_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.network.pool_and_logits(images.float() / 127.5 - 1)
        return features, logits


class RegisteredExtractor(FidelityExtractor):
    """One of torch-fidelity's `REGISTERED` networks, on the layer that it takes for FID. It resizes images itself.

    torch-fidelity downloads the weights, DINOv2's with its code.
    """

    def __init__(self, name: str) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

        kind = FEATURE_EXTRACTORS_REGISTRY[name]
        try:
            network = kind(name, [kind.get_default_feature_layer_for_metric("fid")], verbose=False)
        except Exception as error:  # no network, a server's answer, a file cut off: many kinds
            reason = " ".join(str(error).split())
            raise FileNotFoundError(
                f"{name}: its weights are neither in {torch.hub.get_dir()} nor to be had ({reason}). Run it once where "
                f'there is a network and copy that folder, or use the extractor "{JUDGE}", which needs no download.'
            ) from error
        size = network.resolution if hasattr(network, "resolution") else network.INPUT_IMAGE_SIZE
        super().__init__(f"{name}@{size}px", network)
        black_and_white = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 8, 8)
        with torch.no_grad():
            black, white = self(black_and_white)[0]
        if torch.equal(black, white):  # all distances would be 0
            raise ValueError(f"{name}: sees no difference between black and white: a file of its weights lacks some")

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        (features,) = self.network(images)
        return features, features.new_zeros(len(features), 0)


def build_extractor(name: str, image_size: int, input_size: int | None = None) -> FidelityExtractor:
    """The extractor of this name, for images of `image_size`.

    "auto" is Inception when its file is on disk already, else `JUDGE`. An EfficientNet sees images at `input_size`:
    by default 64 for images up to 64 pixels (enough for 32-pixel images, and cheap) and 224 above.

    Raises:
        ValueError: the name is not in `EXTRACTORS`, one whose size is fixed got an `input_size`, or weights are zeros.
        FileNotFoundError: the weights are not on disk and cannot be downloaded, or a package is missing.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

    if name == "auto":
        name = "inception-v3-compat" if hub_file(URL_INCEPTION_V3).exists() else JUDGE
        input_size = None if name == "inception-v3-compat" else input_size
    if name == "inception-v3-compat":
        if input_size not in (None, FeatureExtractorInceptionV3.INPUT_IMAGE_SIZE):
            raise ValueError(f"inception-v3-compat resizes to 299 pixels itself: leave out input_size={input_size}.")
        return InceptionExtractor()
    if name in EFFICIENTNETS:
        return EfficientNetExtractor(name, input_size or (64 if image_size <= 64 else 224))
    if name in REGISTERED:
        if input_size is not None:
            raise ValueError(f"{name} resizes images itself: leave out input_size={input_size}.")
        return RegisteredExtractor(name)
    raise ValueError(f'No extractor "{name}". Choose one of {", ".join(EXTRACTORS)}.')


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] -> 0 to 255, clamped and rounded, as a PNG file would hold them."""
    return ((images.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
