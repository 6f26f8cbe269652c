from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import TensorDataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics

from lightning_modules.hub import hub_file
from lightning_modules.metrics import Fidelity, FidelityExtractor, build_extractor
from lightning_modules.metrics.extractors import EfficientNetExtractor, to_uint8
from lightning_modules.metrics.fidelity import RealImages

SIZE = 32
N = 60


class Images(TensorDataset):
    """uint8 images as torch-fidelity reads them: the image itself, not a tuple."""

    def __getitem__(self, index: int) -> Tensor:
        return self.tensors[0][index]


class RegisteredEfficientNet(FeatureExtractorBase):
    """This suite's extractor in torch-fidelity's registry, so that torch-fidelity's whole pipeline can be compared."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.extractor = EfficientNetExtractor("efficientnet-lite2", 64)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = dict(zip(("features", "logits"), self.extractor(images), strict=True))
        return tuple(outputs[name] for name in self.features_list)


@pytest.fixture(scope="module")
def images() -> tuple[Tensor, Tensor]:
    """Two sets of blobs of different colours, (N, 3, 32, 32) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(2, N, 3, 4, 4, generator=generator)
    coarse[1, :, 0] += 0.5
    real, fake = (torch.nn.functional.interpolate(c, SIZE, mode="bicubic").tanh() for c in coarse)
    return real, fake


class TinyExtractor(FidelityExtractor):
    """12 features and 12 logits in no time: FID of 1280 features takes seconds."""

    def __init__(self) -> None:
        super().__init__("tiny@2px", torch.nn.AdaptiveAvgPool2d(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.network(images.float() / 127.5 - 1).flatten(1)  # (B, 12)
        return features, 4 * features


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetExtractor:
    return EfficientNetExtractor("efficientnet-lite2", 64)


@pytest.fixture
def metric(monkeypatch: pytest.MonkeyPatch) -> Fidelity:
    monkeypatch.setattr("lightning_modules.metrics.fidelity.build_extractor", lambda *_: TinyExtractor())
    return Fidelity(SIZE, kid=True, prc=True)


def feed(metric: Fidelity, real: Tensor, fake: Tensor, batch_size: int = 16) -> dict[str, float]:
    for batch in real.split(batch_size):
        metric.update(batch, real=True)
    for batch in fake.split(batch_size):
        metric.update(batch, real=False)
    return {name: value.item() for name, value in metric.compute().items()}


def test_equals_torch_fidelity(
    metric: Fidelity, efficientnet: EfficientNetExtractor, images: tuple[Tensor, Tensor]
) -> None:
    torch_fidelity.register_feature_extractor("efficientnet-lite2-test", RegisteredEfficientNet)
    real, fake = images
    expected = torch_fidelity.calculate_metrics(
        input1=Images(to_uint8(fake)),
        input2=Images(to_uint8(real)),
        feature_extractor="efficientnet-lite2-test",
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=N,
        batch_size=16,
        save_cpu_ram=True,  # no worker processes
        cuda=False,
        cache=False,
        verbose=False,
    )
    metric.extractor = efficientnet
    result = feed(metric, real, fake)
    assert result["fid"] > 1
    assert result["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-5)
    assert result["isc_mean"] == pytest.approx(expected["inception_score_mean"], rel=1e-5)
    assert result["isc_std"] == pytest.approx(expected["inception_score_std"], rel=1e-4)
    assert result["kid"] == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    assert result["precision"] == pytest.approx(expected["precision"])
    assert result["recall"] == pytest.approx(expected["recall"])


def test_a_set_against_itself(metric: Fidelity, images: tuple[Tensor, Tensor]) -> None:
    real, fake = images
    same = feed(metric, real, real)
    assert abs(same["fid"]) < 1e-5
    assert same["precision"] == same["recall"] == 1
    metric.reset()
    assert feed(metric, real, fake)["fid"] > 100 * abs(same["fid"])


def test_two_processes_give_the_fid_of_one(metric: Fidelity, images: tuple[Tensor, Tensor]) -> None:
    real, fake = images
    one = feed(metric, real, fake)
    rank0, rank1 = metric.clone(), metric.clone()
    for rank, half in ((rank0, slice(0, 20)), (rank1, slice(20, N))):
        rank.reset()
        rank.update(real[half], real=True)
        rank.update(fake[half], real=False)
    rank0.merge_state(rank1)
    merged = rank0.compute()
    assert merged["fid"].item() == pytest.approx(one["fid"], rel=1e-4)
    assert merged["recall"].item() == pytest.approx(one["recall"])


def test_real_features_come_from_the_cache_file(
    metric: Fidelity, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    real, fake = images
    expected = feed(metric, real, fake)["fid"]
    path = tmp_path / "features" / "val.pt"
    reads = []

    def batches(images: Tensor) -> Any:
        for batch in images.split(16):
            reads.append(len(batch))
            yield batch

    metric.load_or_compute_real(path, "shapes/val/32px", batches(real))
    assert sum(reads) == N
    assert [file.name for file in path.parent.iterdir()] == ["val.pt"]  # no temporary file is left

    reads.clear()
    metric.set_real(None)
    metric.reset()
    metric.load_or_compute_real(path, "shapes/val/32px", batches(real))
    assert not reads
    metric.update(fake, real=False)
    assert metric.compute()["fid"].item() == pytest.approx(expected, rel=1e-4)
    metric.reset()
    assert metric.real_images().num == N  # they stay

    metric.load_or_compute_real(path, "shapes/val/64px", batches(real[:8]))
    assert sum(reads) == 8  # another key: computed anew
    assert metric.real_images().num == 8


def test_moments_of_parts_are_those_of_all() -> None:
    """Features far from zero: nothing cancels. They are what torch-fidelity makes of the features at once."""
    features = 1000 + torch.randn(300, 7) * torch.logspace(-3, 2, 7)
    real = RealImages.of(features.split([1, 200, 99]), with_features=False)
    expected = fid_features_to_statistics(features.double())
    assert real.num == 300 and real.features is None
    np.testing.assert_allclose(real.statistics["mu"], expected["mu"], rtol=1e-9)
    np.testing.assert_allclose(real.statistics["sigma"], expected["sigma"], rtol=1e-6, atol=1e-9)


def test_the_file_holds_features_only_where_they_are_needed(
    metric: Fidelity, images: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    real, fake = images
    plain = Fidelity(SIZE)
    plain.load_or_compute_real(tmp_path / "val.pt", "x", [real])
    size = (tmp_path / "val.pt").stat().st_size
    assert plain.real_images().features is None
    plain.update(fake, real=False)
    assert set(plain.compute()) == {"fid", "isc_mean", "isc_std"}
    assert metric.prc, "which needs neighbours among the features"
    metric.load_or_compute_real(tmp_path / "val.pt", "x", [real])  # made again, with them
    assert len(metric.real_images().features) == N and (tmp_path / "val.pt").stat().st_size > size


def test_images_are_quantised_as_png_files_are() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels)
    assert to_uint8(torch.tensor([-7.0, 7.0, 1 / 255, -1 / 255])).tolist() == [0, 255, 128, 127]


def test_mistakes_are_explained(metric: Fidelity, images: tuple[Tensor, Tensor]) -> None:
    metric.update(images[1][:4], real=False)
    with pytest.raises(ValueError, match="no real images"):
        metric.compute()
    metric.reset()
    metric.update(images[0][:4], real=True)
    with pytest.raises(ValueError, match="no images to judge"):
        metric.compute()
    with pytest.raises(ValueError, match="got 1 real"):
        RealImages.of([torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="clip"):
        build_extractor("clip", SIZE)
    with pytest.raises(ValueError, match="299"):
        build_extractor("inception-v3-compat", SIZE, input_size=64)


def test_protocol_id_and_the_choice_of_extractor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The judge is not the network that trains, makes codebooks and selects."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert build_extractor("auto", 256).id == "efficientnet-lite2@224px"
    assert build_extractor("auto", 32, input_size=96).id == "efficientnet-lite2@96px"
    metric = Fidelity(SIZE)
    assert metric.protocol_id(10_000, "val-vs-val") == "rfid/efficientnet-lite2@64px/val-vs-val/n10000/uint8"
    assert metric.state_dict() == {}
    assert not list(metric.parameters())


def test_inception_is_taken_when_its_file_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = hub_file(URL_INCEPTION_V3)
    file.parent.mkdir(parents=True)
    torch.save({}, file)  # an empty file, and random weights, stand in for the 90 MB
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    extractor = build_extractor("auto", SIZE)
    assert extractor.id == "inception-v3-compat@299px"
    features, logits = extractor(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8))
    assert features.shape == (1, 2048) and logits.shape == (1, 1008)


def test_a_missing_inception_names_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise URLError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match=r"weights-inception-2015-12-05-6726825d\.pth is missing"):
        build_extractor("inception-v3-compat", SIZE)
