"""FID, IS, precision and recall of generated images, streamed: features are kept, images are not.

Shapes: B images a batch, N images in all, D features, C classes of the extractor, T tokens.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_modules.distributed import gather_rows
from lightning_modules.metrics.codebook import CodebookUsage
from lightning_modules.metrics.extractors import EXTRACTORS
from lightning_modules.metrics.fidelity import Fidelity, fidelity_values, first_images
from lightning_modules.options import no_identity


class Classifier(Protocol):
    """Scores images (B, 3, H, W) in [-1, 1] by p(label), (B,), of their labels (B,). `id` is for protocol ids."""

    id: str

    def __call__(self, images: Tensor, labels: Tensor, /) -> Tensor: ...


@dataclass
class GenerationConfig:
    """How many images are generated at the evaluation, and what they are compared with.

    `reference`: train (the papers': 50,000 samples against the training set) or val. `acceptance`: also measure what is
    left when a classifier keeps this share of the candidates, the best of each class (A-Table 6): `num_samples` images
    are kept, so 0.25 generates four times as many. `extractor`: auto (Inception where its file is, else
    EfficientNet-Lite2) | inception-v3-compat | efficientnet-lite0, 1, 2, at `extractor_image_size` pixels (0 = its
    default); auto never judges by the network of `classifier`.
    """

    num_samples: int = 0  # 0 = no generation
    batch_size: int = no_identity(64)  # changes no number, only speed and memory
    seed: int = 0
    reference: str = "train"
    num_reference: int = 0  # only this many reference images, the first ones, class-balanced; 0 = all
    acceptance: list[float] = field(default_factory=list)
    classifier: str = "auto"  # auto | timm:NAME (A: timm:resnet101.tv_in1k) | efficientnet-lite0 with a trained head
    extractor: str = "auto"
    extractor_image_size: int = 0
    precision_recall: bool = False

    def check(self) -> None:
        """Raises ValueError for a value that cannot be."""
        if self.reference not in ("train", "val"):
            raise ValueError(f"reference='{self.reference}' is none of train, val")
        fewest = 4 if self.precision_recall else 2  # a covariance, or the third neighbour of each image
        if (self.num_samples and self.num_samples < fewest) or self.batch_size < 1:
            raise ValueError(
                f"num_samples={self.num_samples} must be 0 or at least {fewest}, and batch_size={self.batch_size} at "
                "least 1"
            )
        if self.num_reference and self.num_reference < fewest:
            raise ValueError(f"num_reference={self.num_reference} must be 0 (all) or at least {fewest}")
        if self.extractor not in EXTRACTORS:
            raise ValueError(f"extractor='{self.extractor}' is none of {', '.join(EXTRACTORS)}")
        if not (self.classifier in ("auto", "efficientnet-lite0") or self.classifier.startswith("timm:")):
            raise ValueError(f"classifier='{self.classifier}' is none of auto, efficientnet-lite0, timm:NAME")
        if self.acceptance and not self.num_samples:
            raise ValueError("acceptance needs num_samples, the number to accept")
        for rate in self.acceptance:
            if not 0 < rate < 1:
                raise ValueError(f"acceptance={self.acceptance}: rates lie between 0 and 1")

    @property
    def num_candidates(self) -> int:
        return round(self.num_samples / min([1.0, *self.acceptance]))


class GenerationMetrics(nn.Module):
    """Call `use_reference` once, then `measure` for each model or epoch. Nothing of it is in a checkpoint."""

    def __init__(self, config: GenerationConfig, codebook_size: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.codebook_size = codebook_size
        self.fidelity = Fidelity(
            image_size,
            extractor=config.extractor,
            input_size=config.extractor_image_size or None,
            prc=config.precision_recall,
        )
        self.num_reference = 0

    @property
    def has_reference(self) -> bool:
        return self.num_reference > 0

    def use_reference(self, folder: Path, batches: Iterable[Tensor], key: str) -> None:
        """Takes the real images' features from a file in `folder`, made of `batches` if needed; `key` names them."""
        limit = self.config.num_reference
        key = f"{key}/n{limit or 'all'}"
        path = folder / f"{self.fidelity.extractor.id}_{key}.pt".replace("/", "_")
        self.num_reference = self.fidelity.load_or_compute_real(path, key, first_images(batches, limit)).num

    def measure(
        self, samples: Iterable[tuple[list[int], Tensor, Tensor, Tensor]], classifier: Classifier | None = None
    ) -> dict[str, Tensor]:
        """Of batches of this process's images: (numbers, images (B, 3, H, W) in [-1, 1], tokens (B, T), labels (B,)).

        Without acceptance rates fid, is, is_std, usage/generated beside reachable/generated, and precision and recall
        when asked for; with a rate r also each as fid/accept-r, the classifier's choice.
        """
        rates = self.config.acceptance
        assert classifier is not None or not rates, "acceptance rates are by a classifier"
        self.classifier_id = classifier.id if classifier is not None and rates else ""
        parts: dict[str, list[Tensor]] = {
            name: [] for name in ("number", "feature", "logit", "token", "label", "score")
        }
        for ids, images, tokens, labels in samples:
            features, logits = self.fidelity.extract(images)
            scores = classifier(images, labels) if classifier is not None and rates else torch.zeros(len(labels))
            values_of_batch = (torch.tensor(ids), features, logits, tokens, labels, scores)
            for part, value in zip(parts.values(), values_of_batch, strict=True):
                part.append(value.cpu())
        number, feature, logit, token, label, score = (gather_rows(torch.cat(part)) for part in parts.values())
        order = number.argsort()
        feature, logit, token, label, score = (part[order] for part in (feature, logit, token, label, score))
        values: dict[str, Tensor] = {}
        for rate in [1.0, *rates]:
            candidates = slice(0, round(self.config.num_samples / rate))
            kept = torch.arange(len(feature[candidates]))
            if rate < 1:
                kept = best_of_each_class(score[candidates], label[candidates], self.config.num_samples)
            suffix = "" if rate == 1 else f"/accept-{rate:g}"
            numbers = fidelity_values(
                self.fidelity.real_images(), feature[kept], logit[kept], prc=self.config.precision_recall
            )
            usage = CodebookUsage(self.codebook_size)
            usage.update(token[kept])
            values |= {f"{NAMES.get(name, name)}{suffix}": torch.tensor(value) for name, value in numbers.items()}
            values |= {f"{name}/generated{suffix}": usage.compute()[name] for name in ("usage", "reachable")}
        self.measured = list(values)
        return values

    def protocols(self, sampling: str) -> dict[str, str]:
        """How each number of the last `measure` was made: name -> protocol id."""
        config = self.config
        reference = f"generated-vs-{config.reference}{self.num_reference}"
        ids = {}
        for name in self.measured:
            metric, _, rate = name.partition("/accept-")
            how = f"{sampling}/accept-{rate}-by-{self.classifier_id}" if rate else sampling
            if metric in ("usage/generated", "reachable/generated"):
                ids[name] = f"{metric.partition('/')[0]}/once-in-generated/{how}/n{config.num_samples}"
            else:
                ids[name] = f"{self.fidelity.protocol_id(config.num_samples, reference, metric)}/{how}"
        return ids


NAMES = {"isc_mean": "is", "isc_std": "is_std"}


def best_of_each_class(scores: Tensor, labels: Tensor, size: int) -> Tensor:
    """Indices (size,), in rising order, of the images whose scores (N,) are highest within their class.

    The same share of every class is taken; `labels` (N,) say which class each image has.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]  # class by class, best first
    counts = labels.bincount()
    first = (counts.cumsum(0) - counts)[labels[order]]
    rank = (torch.arange(len(labels)) - first) / counts[labels[order]]  # in [0, 1): the position within its class
    return order[rank.argsort(stable=True)[:size]].sort().values
