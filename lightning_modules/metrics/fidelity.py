"""FID, Inception Score, KID, precision and recall, streamed: images are not kept.

Shapes: B images of one update, N images in all, H x W pixels, D features, C classes.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_modules.archives import check_sums
from lightning_modules.distributed import in_order
from lightning_modules.metrics.extractors import build_extractor, to_uint8


class RealImages(NamedTuple):
    """What the metrics need of the real images: for FID their moments, which are small for any number of images."""

    num: int
    mean: Tensor  # (D,) float64
    covariance: Tensor  # (D, D) float64
    features: Tensor | None  # (N, D), only where KID, precision or recall need them

    @classmethod
    def of(cls, parts: Iterable[Tensor], with_features: bool = True) -> "RealImages":
        """Of features (B, D) in parts, of which only the moments are kept in memory unless `with_features`.

        Raises ValueError: fewer than two images.
        """
        num, kept = 0, []
        shift = total = products = torch.zeros(())
        for part in parts:
            part = part.cpu()
            if not num:  # any point among the features: sums of squares about it lose no digits
                shift = part[0].double()
                total, products = torch.zeros_like(shift), shift.new_zeros(len(shift), len(shift))
            centred = part.double() - shift
            num, total = num + len(part), total + centred.sum(0)
            products += centred.T @ centred
            kept += [part] if with_features else []
        if num < 2:
            raise ValueError(f"Fidelity: a covariance takes two images a side, got {num} real ones.")
        mean = total / num
        covariance = (products - num * torch.outer(mean, mean)) / (num - 1)
        return cls(num, mean + shift, covariance, torch.cat(kept) if with_features else None)

    @property
    def statistics(self) -> dict[str, np.ndarray]:
        """As torch-fidelity has them."""
        return {"mu": self.mean.numpy(), "sigma": self.covariance.numpy()}


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
        extractor: one of `EXTRACTORS` (see `build_extractor`).
        input_size: the size at which an EfficientNet sees the images; None chooses.
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
        self._given_real: RealImages | None = None  # of all processes; survives reset

    def protocol_id(self, n: int, reference: str, metric: str = "rfid") -> str:
        """How a number was made, e.g. "rfid/efficientnet-lite2@64px/val-vs-val/n10000/uint8"."""
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

    def set_real(self, real: RealImages | None) -> None:
        """Takes the whole real set, on every process, in place of real images.

        It stays through `reset`, so one set serves many models and epochs; None forgets it.
        """
        self._given_real = real
        self._computed = None

    def real_images(self) -> RealImages:
        """The ones of `set_real`, else those of the updates."""
        if self._given_real is not None:
            return self._given_real
        if len(self.real) == 0:
            raise ValueError("Fidelity: no real images. Call update(images, real=True) or set_real first.")
        return RealImages.of([self.gathered(self.real)])

    def gathered(self, parts: list[Tensor]) -> Tensor:
        """The rows of all updates and processes, in the order of the data set."""
        rows = dim_zero_cat(parts)
        return in_order(rows) if self._is_synced else rows

    def load_or_compute_real(self, path: str | Path, key: str, images: Iterable[Tensor]) -> RealImages:
        """Sets the real images from a file, or from `images` when the file is missing or of another key.

        Args:
            path: the cache file; written atomically, so processes may do this at the same time. A damaged one is
                made again.
            key: what the images are (data set, split, size, number); the extractor's id is added to it.
            images: batches (B, 3, H, W) in [-1, 1] of the whole set, not of one process's share. Read only if
                needed, on this metric's device.
        """
        path, needs_features = Path(path), self.kid or self.prc
        key = f"{self.extractor.id}/{key}"
        real = read_real(path, key)
        if real is None or (needs_features and real.features is None):
            real = RealImages.of((self.extract(batch.to(self.device))[0] for batch in images), needs_features)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            try:
                torch.save({"key": key, **real._asdict()}, temporary)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
        self.set_real(real)
        return real

    def compute(self) -> dict[str, Tensor]:
        """Scalars by name. ValueError: fewer than two images on either side."""
        real = self.real_images()
        if len(self.fake) == 0:
            raise ValueError("Fidelity: no images to judge. Call update(images, real=False) first.")
        fake, logits = self.gathered(self.fake).cpu(), self.gathered(self.fake_logits).cpu()  # (N, D), (N, C)
        values = fidelity_values(real, fake, logits, self.kid, self.prc)
        return {name: torch.tensor(value) for name, value in values.items()}


def read_real(path: Path, key: str) -> RealImages | None:
    """The real images of a file; None when it is missing, damaged or of another key: they are made again."""
    try:
        check_sums(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
        real = RealImages(*(saved[name] for name in RealImages._fields))
        is_whole = saved["key"] == key and real.covariance.shape == (*real.mean.shape, *real.mean.shape)
        return real if is_whole and real.num >= 2 else None
    except Exception:  # torch raises many kinds for a damaged file
        return None


def fidelity_values(
    real: RealImages, fake: Tensor, logits: Tensor, kid: bool = False, prc: bool = False
) -> dict[str, float]:
    """FID, IS, and KID, precision and recall when asked for, by torch-fidelity's formulas.

    Args:
        real: with its features for KID, precision and recall.
        fake: features (N, D) on the CPU; the two N may differ.
        logits: (N, C) of the fake images; C = 0: no IS.

    Raises:
        ValueError: fewer than two of them.
    """
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    if len(fake) < 2:
        raise ValueError(f"Fidelity: a covariance takes two images a side, got {len(fake)} to judge.")
    fid = fid_statistics_to_metric(fid_features_to_statistics(fake.double()), real.statistics, verbose=False)
    values = {"fid": fid["frechet_inception_distance"]}
    if logits.shape[1]:
        isc = isc_features_to_metric(logits, splits=min(10, len(logits)))
        values |= {"isc_mean": isc["inception_score_mean"], "isc_std": isc["inception_score_std"]}
    if kid:
        size = min(1000, real.num, len(fake))
        result = kid_features_to_metric(fake, real.features, kid_subset_size=size, verbose=False)
        values["kid"] = result["kernel_inception_distance_mean"]
    if prc:
        result = prc_features_to_metric(fake, real.features, save_cpu_ram=True, verbose=False)
        values |= {"precision": result["precision"], "recall": result["recall"]}
    return values


def first_images(batches: Iterable[Tensor], limit: int) -> Iterable[Tensor]:
    """The first `limit` of all images; all of them when it is 0."""
    left = limit
    for batch in batches:
        yield batch[:left] if limit else batch
        left -= len(batch)
        if limit and left <= 0:
            return
