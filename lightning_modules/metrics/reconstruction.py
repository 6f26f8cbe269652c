"""Metrics of a reconstruction against its own image.

Shapes: B images, H x W pixels, M metrics.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lightning_modules.hub import hub_file
from lightning_modules.losses.perceptual import LPIPS_URLS, EncoderFeatureLoss, LPIPSLoss

SSIM_WINDOW = 11  # pixels
LPIPS_SIZE = 64  # pixels, the smallest side: those of the patches on which LPIPS was calibrated


def enlarged(image: Tensor) -> Tensor:
    """(B, 3, H, W), bilinear to `LPIPS_SIZE` pixels where a side is smaller: AlexNet's last maps of 32 are 1 x 1."""
    if (smallest := min(image.shape[2:])) >= LPIPS_SIZE:
        return image
    size = [round(side * LPIPS_SIZE / smallest) for side in image.shape[2:]]
    return F.interpolate(image, size, mode="bilinear", align_corners=False)


def to_unit(image: Tensor) -> Tensor:
    """[-1, 1], clamped -> [0, 1], float32."""
    return (image.float().clamp(-1, 1) + 1) / 2


def per_image_psnr(x: Tensor, y: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] twice -> (B,) dB, over RGB."""
    return peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))


class ReconstructionMetrics(Metric):
    """PSNR, SSIM, L1, L2 and perceptual distances, each of every image, averaged over the images.

    All on RGB pixels in [0, 1] (data range 1), reconstructions clamped, not rounded. `protocols` maps each
    key of the result to the id that says how it was made. Two of them depart from B's code, where PSNR is of
    the Y channel and LPIPS is fed inputs in [-3, 1] (trap B6).

    - psnr: dB (infinite for a perfect image).  - ssim: a fraction; B's tables give percent.
    - l1, l2: mean absolute and squared difference of channel values (A-Table 4 multiplies by 100 and 1000).
    - lpips: LPIPS v0.1, of images enlarged (bilinear) to 64 pixels where they are smaller; absent from the result
      when its weights are.
    - feature_distance: as LPIPS, on EfficientNet-Lite0 (see `EncoderFeatureLoss`).

    Args:
        image_size: H = W of the images, at least 11 for SSIM's window.
        lpips: "vgg", "alex" (B's), "none", or "auto": alex, else vgg, whichever has its weights on disk, else
            none.
        feature_distance: whether to measure it.

    Raises:
        ValueError: no such `lpips`.
        FileNotFoundError: LPIPS weights that were asked for by name are missing.
    """

    full_state_update = False
    totals: Tensor
    num_images: Tensor

    def __init__(self, image_size: int, lpips: str = "auto", feature_distance: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if lpips == "auto":
            lpips = next((net for net in ("alex", "vgg") if hub_file(LPIPS_URLS[net]).exists()), "none")
        self.lpips = None if lpips == "none" else LPIPSLoss(lpips)
        self.feature_distance = EncoderFeatureLoss(image_size) if feature_distance else None

        self.protocols = {
            "psnr": "psnr/rgb-range1-per-image",
            "ssim": "ssim/rgb-range1-gauss11",
            "l1": "l1/rgb-range1",
            "l2": "l2/rgb-range1",
        }
        if self.lpips is not None:
            self.protocols["lpips"] = f"lpips/{lpips}-v0.1" + (f"@{LPIPS_SIZE}px" if image_size < LPIPS_SIZE else "")
        if self.feature_distance is not None:
            num_stages = self.feature_distance.num_stages
            self.protocols["feature_distance"] = (
                f"feature-distance/efficientnet-lite0@{image_size}px/{num_stages}-stages"
            )
        self.add_state("totals", torch.zeros(len(self.protocols)), dist_reduce_fx="sum")  # (M,)
        self.add_state("num_images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, reconstruction: Tensor, image: Tensor) -> None:
        """Adds B pairs, (B, 3, H, W) in [-1, 1] each; values outside are clamped."""
        with torch.autocast(image.device.type, enabled=False):  # a metric is fp32 however the model ran
            values = self.of_each(reconstruction.float().clamp(-1, 1), image.float().clamp(-1, 1))
        self.totals = self.totals + torch.stack([values[key].sum() for key in self.protocols])
        self.num_images = self.num_images + len(image)

    def of_each(self, reconstruction: Tensor, image: Tensor) -> dict[str, Tensor]:
        """The metrics of each of B pairs, (B,) each; both are (B, 3, H, W) in [-1, 1], float32.

        SSIM is NaN where a side is shorter than its window.
        """
        x, y = to_unit(reconstruction), to_unit(image)
        difference = (x - y).flatten(1)  # (B, 3 H W)
        values: dict[str, Any] = {
            "psnr": per_image_psnr(x, y),
            "ssim": structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
            if min(x.shape[2:]) >= SSIM_WINDOW
            else x.new_full((len(x),), torch.nan),
            "l1": difference.abs().mean(dim=1),
            "l2": difference.square().mean(dim=1),
        }
        if self.lpips is not None:
            values["lpips"] = self.lpips.distance(enlarged(reconstruction), enlarged(image))
        if self.feature_distance is not None:
            values["feature_distance"] = self.feature_distance.distance(reconstruction, image)
        return values

    def compute(self) -> dict[str, Tensor]:
        return dict(zip(self.protocols, self.totals / self.num_images, strict=True))
