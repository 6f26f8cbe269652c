"""Generation metrics: the same numbers as Fidelity's, acceptance, and the checks of their configuration."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_modules.metrics import Fidelity
from lightning_modules.metrics.generation import GenerationConfig, GenerationMetrics, best_of_each_class

NUM, CLASSES = 24, 3
OPTIONS: dict[str, Any] = {"num_samples": 12, "extractor": "efficientnet-lite0", "extractor_image_size": 32}


def random_images(num: int, seed: int) -> Tensor:
    return torch.rand(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Brightness:
    """Prefers bright images, of class 0 dark ones."""

    id = "brightness"

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.mean((1, 2, 3)) * torch.where(labels == 0, -1, 1)


def samples(batch: int, order: list[int] | None = None) -> list[tuple[list[int], Tensor, Tensor, Tensor]]:
    """24 candidates of three classes in turn; image i has tokens i and 31."""
    images, numbers = random_images(NUM, 1), order or list(range(NUM))
    parts = [numbers[first : first + batch] for first in range(0, NUM, batch)]
    return [(ids, images[ids], torch.tensor([[i, 31] for i in ids]), torch.tensor(ids) % CLASSES) for ids in parts]


def metrics(tmp_path: Path, **options: Any) -> GenerationMetrics:
    made = GenerationMetrics(GenerationConfig(**OPTIONS, **options), 32, 16)
    made.use_reference(tmp_path, [random_images(10, 0), random_images(10, 2)], "real")
    return made


def by_fidelity(ids: list[int]) -> dict[str, float]:
    fidelity = Fidelity(16, extractor="efficientnet-lite0", input_size=32, prc=True)
    for seed in (0, 2):
        fidelity.update(random_images(10, seed), real=True)
    fidelity.update(random_images(NUM, 1)[ids], real=False)
    return {name: float(value) for name, value in fidelity.compute().items()}


@pytest.mark.usefixtures("shared_encoders")
def test_the_numbers_are_fidelitys(tmp_path: Path) -> None:
    measured = metrics(tmp_path, precision_recall=True)
    found = measured.measure(samples(6)[:2])
    expected = by_fidelity(list(range(12)))
    assert float(found["fid"]) == pytest.approx(expected["fid"], rel=1e-4)
    assert float(found["is"]) == pytest.approx(expected["isc_mean"], rel=1e-5)
    assert float(found["is_std"]) == pytest.approx(expected["isc_std"], rel=1e-4)
    assert float(found["precision"]) == expected["precision"] and float(found["recall"]) == expected["recall"]
    assert float(found["usage/generated"]) == pytest.approx(100 * 13 / 32)
    assert float(found["reachable/generated"]) == pytest.approx(100 * (1 - math.exp(-24 / 32)))
    ids = measured.protocols("t1")
    assert set(ids) == set(found)
    assert ids["fid"] == "fid/efficientnet-lite0@32px/generated-vs-train20/n12/uint8/t1"


@pytest.mark.usefixtures("shared_encoders")
def test_acceptance_takes_the_best_of_each_class(tmp_path: Path) -> None:
    measured = metrics(tmp_path, acceptance=[0.5])
    found = measured.measure(samples(24), Brightness())
    scores = Brightness()(random_images(NUM, 1), torch.arange(NUM) % CLASSES)
    best = sorted(i for c in range(CLASSES) for i in sorted(range(c, NUM, CLASSES), key=lambda i: -scores[i])[:4])
    assert float(found["fid/accept-0.5"]) == pytest.approx(by_fidelity(best)["fid"], rel=1e-4)
    assert float(found["fid"]) == pytest.approx(by_fidelity(list(range(12)))["fid"], rel=1e-4)
    assert abs(float(found["fid"] - found["fid/accept-0.5"])) > 1e-3 * float(found["fid"])
    ids = measured.protocols("t1")
    assert set(ids) == set(found)
    assert ids["is/accept-0.5"].endswith("/n12/uint8/t1/accept-0.5-by-brightness")
    assert ids["reachable/generated"] == "reachable/once-in-generated/t1/n12"
    assert ids["usage/generated/accept-0.5"] == "usage/once-in-generated/t1/accept-0.5-by-brightness/n12"

    shuffled = torch.randperm(NUM, generator=torch.Generator().manual_seed(0)).tolist()
    again = measured.measure(samples(7, shuffled), Brightness())
    assert {k: float(v) for k, v in again.items()} == pytest.approx({k: float(v) for k, v in found.items()}, rel=1e-4)


@pytest.mark.usefixtures("shared_encoders")
def test_without_a_classifier_nothing_is_accepted(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="by a classifier"):
        metrics(tmp_path, acceptance=[0.5]).measure(samples(24))


def test_reference_images_are_limited_and_remembered(tmp_path: Path, shared_encoders: None) -> None:
    made = GenerationMetrics(GenerationConfig(**OPTIONS, num_reference=12), 32, 16)
    assert not made.has_reference
    made.use_reference(tmp_path, [random_images(10, 0), random_images(10, 2)], "a/b")
    assert made.has_reference and made.num_reference == 12
    made.use_reference(tmp_path, iter(()), "a/b")
    assert made.num_reference == 12 and len([*tmp_path.iterdir()]) == 1
    assert not made.state_dict()


@pytest.mark.parametrize(("size", "counts"), [(6, [2, 2, 2]), (7, [3, 2, 2]), (12, [4, 4, 4])])
def test_best_of_each_class(size: int, counts: list[int]) -> None:
    labels = torch.arange(12) % 3
    scores = torch.rand(12, generator=torch.Generator().manual_seed(0)) + labels  # class 2 would win every place
    kept = best_of_each_class(scores, labels, size)
    assert kept.tolist() == sorted(kept.tolist()) and len(set(kept.tolist())) == size
    assert labels[kept].bincount().tolist() == counts
    for label in range(3):
        own = scores[labels == label].sort(descending=True).values
        assert sorted(scores[kept][labels[kept] == label].tolist()) == sorted(own[: counts[label]].tolist())


def test_best_of_classes_of_different_sizes() -> None:
    """Half of four and half of two."""
    labels = torch.tensor([0, 0, 0, 0, 5, 5])
    kept = best_of_each_class(torch.tensor([0.1, 0.4, 0.3, 0.2, 0.9, 0.8]), labels, 3)
    assert kept.tolist() == [1, 2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": "test"}, "reference='test' is none of train, val"),
        ({"num_samples": 1}, "num_samples=1 must be 0 or at least 2"),
        ({"num_samples": 3, "precision_recall": True}, "num_samples=3 must be 0 or at least 4"),
        ({"num_samples": 9, "num_reference": 3, "precision_recall": True}, "num_reference=3 must be 0 .* at least 4"),
        ({"num_reference": 1}, r"num_reference=1 must be 0 \(all\) or at least 2"),
        ({"batch_size": 0}, "batch_size=0 at least 1"),
        ({"acceptance": [0.5]}, "acceptance needs num_samples"),
        ({"num_samples": 9, "acceptance": [1.5]}, r"acceptance=\[1.5\]: rates lie between 0 and 1"),
        ({"extractor": "clip"}, "extractor='clip' is none of auto, inception-v3-compat, efficientnet-lite0"),
        ({"classifier": "resnet"}, "classifier='resnet' is none of auto, efficientnet-lite0, timm:NAME"),
    ],
)
def test_bad_values(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**options).check()


def test_candidates() -> None:
    assert GenerationConfig(num_samples=10, acceptance=[0.5, 0.25]).num_candidates == 40
    assert GenerationConfig(num_samples=10).num_candidates == 10
