"""FID, Inception Score, KID, precision and recall, streamed: features are kept, images are not.

Letters: B images of one update, N images in all, H x W pixels, D features, C classes.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.archives import check_sums
from lightning_modules.distributed import in_order
from lightning_modules.metrics.extractors import build_extractor, to_uint8


class Fidelity(Metric):
    """Distances between the distributions of real images and of reconstructed or generated ones.

    The formulas are torch-fidelity's own functions, called on the features; images are quantised to uint8
    first, as if they had gone through PNG files. `compute` returns `fid`, `isc_mean` and `isc_std` (of the
    images that are not real, 10 splits), with `kid` also `kid`, with `prc` also `precision` and `recall`.
    When N is not much larger than D, FID is biased upward: compare numbers of one `protocol_id` only.

    With several processes, each of which has every W-th image, the features are gathered and put back in the order
    of the data set, on which the splits of IS and the subsets of KID depend.

    Args:
        image_size: H = W of the images.
        extractor: "auto", "inception-v3-compat" or "efficientnet-lite0" (see `build_extractor`).
        input_size: the size at which EfficientNet-Lite0 sees the images; None chooses.
        kid: also compute KID (100 subsets of 1000, or of N when that is less).
        prc: also compute precision and recall (3 neighbours).
    """

    full_state_update = False
    real: list[Tensor]
    fake: list[Tensor]
    fake_logits: list[Tensor]

    def __init__(
        self,
        image_size: int,
        extractor: str = "auto",
        input_size: int | None = None,
        kid: bool = False,
        prc: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.extractor = build_extractor(extractor, image_size, input_size)
        self.kid = kid
        self.prc = prc
        self.add_state("real", [], dist_reduce_fx="cat")  # [(B, D)]
        self.add_state("fake", [], dist_reduce_fx="cat")  # [(B, D)]
        self.add_state("fake_logits", [], dist_reduce_fx="cat")  # [(B, C)]
        self._given_real: Tensor | None = None  # (N, D), of all processes; survives reset

    def protocol_id(self, n: int, reference: str, metric: str = "rfid") -> str:
        """How a number was made, e.g. "rfid/efficientnet-lite0@64px/val-vs-val/n10000/uint8"."""
        return f"{metric}/{self.extractor.id}/{reference}/n{n}/uint8"

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> features (B, D), logits (B, C), float32."""
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            features, logits = self.extractor(to_uint8(images))
        return features.float(), logits.float()

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images (B, 3, H, W) in [-1, 1]; values outside are clamped."""
        features, logits = self.extract(images)
        if real:
            self.real.append(features)
        else:
            self.fake.append(features)
            self.fake_logits.append(logits)

    def set_real_features(self, features: Tensor | None) -> None:
        """Takes features (N, D) of the whole real set, on every process, in place of real images.

        They stay through `reset`, so one set serves many models and epochs; None forgets them.
        """
        if features is not None and features.ndim != 2:
            raise ValueError(f"Fidelity: real features must be (N, D), these are {tuple(features.shape)}.")
        self._given_real = features
        self._computed = None

    def real_features(self) -> Tensor:
        """Features of the real images (N, D): those that were given, else those of the updates."""
        if self._given_real is not None:
            return self._given_real
        if len(self.real) == 0:
            raise ValueError("Fidelity: no real images. Call update(images, real=True) or set_real_features first.")
        return self.gathered(self.real)

    def gathered(self, parts: list[Tensor]) -> Tensor:
        """The rows of all updates and processes, in the order of the data set."""
        rows = dim_zero_cat(parts)
        return in_order(rows) if self._is_synced else rows

    def load_or_compute_real(self, path: str | Path, key: str, images: Iterable[Tensor]) -> Tensor:
        """Sets real features from a file, or from `images` when the file is missing or of another key.

        Args:
            path: the cache file; written atomically, so processes may do this at the same time. A damaged one is
                made again.
            key: what the images are (data set, split, size, number); the extractor's id is added to it.
            images: batches (B, 3, H, W) in [-1, 1] of the whole set, not of one process's share. Read only if
                needed.
        """
        path = Path(path)
        key = f"{self.extractor.id}/{key}"
        features = read_features(path, key)
        if features is None:
            features = torch.cat([self.extract(batch.to(self.device))[0].cpu() for batch in images])
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                torch.save({"key": key, "features": features}, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        self.set_real_features(features)
        return features

    def compute(self) -> dict[str, Tensor]:
        """Scalars by name. ValueError: fewer than two images on either side."""
        real = self.real_features().cpu()  # (N, D)
        if len(self.fake) == 0:
            raise ValueError("Fidelity: no images to judge. Call update(images, real=False) first.")
        fake, logits = self.gathered(self.fake).cpu(), self.gathered(self.fake_logits).cpu()  # (N, D), (N, C)
        values = fidelity_values(real, fake, logits, self.kid, self.prc)
        return {name: torch.tensor(value) for name, value in values.items()}


def read_features(path: Path, key: str) -> Tensor | None:
    """The features (N, D) of a file; None when it is missing, damaged or of another key: they are made again."""
    try:
        check_sums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        features = saved["features"] if saved["key"] == key else None
        return features if isinstance(features, Tensor) and features.ndim == 2 else None
    except Exception:  # torch raises many kinds for a damaged file
        return None


def fidelity_values(
    real: Tensor, fake: Tensor, logits: Tensor, kid: bool = False, prc: bool = False
) -> dict[str, float]:
    """FID, IS, and KID, precision and recall when asked for, by torch-fidelity's formulas.

    Args:
        real, fake: features (N, D) on the CPU; the two N may differ.
        logits: (N, C) of the fake images.

    Raises:
        ValueError: fewer than two images on either side.
    """
    num_images = min(len(real), len(fake))
    if num_images < 2:
        raise ValueError(f"Fidelity: a covariance takes two images a side, got {len(real)} and {len(fake)}.")
    statistics = fid_features_to_statistics(fake), fid_features_to_statistics(real)
    fid = fid_statistics_to_metric(*statistics, verbose=False)
    isc = isc_features_to_metric(logits, splits=min(10, len(logits)))
    values = {
        "fid": fid["frechet_inception_distance"],
        "isc_mean": isc["inception_score_mean"],
        "isc_std": isc["inception_score_std"],
    }
    if kid:
        found = kid_features_to_metric(fake, real, kid_subset_size=min(1000, num_images), verbose=False)
        values["kid"] = found["kernel_inception_distance_mean"]
    if prc:
        found = prc_features_to_metric(fake, real, save_cpu_ram=True, verbose=False)
        values |= {"precision": found["precision"], "recall": found["recall"]}
    return values


def first_images(batches: Iterable[Tensor], limit: int) -> Iterable[Tensor]:
    """The first `limit` of all images; all of them when it is 0."""
    left = limit
    for batch in batches:
        yield batch[:left] if limit else batch
        left -= len(batch)
        if limit and left <= 0:
            return
