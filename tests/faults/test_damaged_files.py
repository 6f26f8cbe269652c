"""Files that were cut off, changed or replaced by noise: one line that names the file, and never a wrong number."""

import json
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from damage import damaged, refusals
from PIL import Image

from datamodules import ImageFolderConfig, ImageFolderDataModule, TokensConfig, TokensDataModule
from datamodules.decoding import read_image
from datamodules.token_files import SPLITS, TokenMeta, read_labels, values_path
from experiments.pipeline.build import build_model, restore
from experiments.pipeline.codebooks.build import read_codebook, save_codebook
from experiments.pipeline.token_writer import finish
from experiments.runtime.errors import user_errors
from experiments.runtime.files import write_json
from experiments.runtime.records import KINDS, find_records, read_record, record_path, same_experiment
from lightning_modules.metrics.fidelity import RealImages, read_real
from lightning_modules.pretrained import load_checkpoint


class Touch:
    """Code in a file: whoever unpickles it makes `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_damaged_checkpoint(tiny: TinyExperiment, tmp_path: Path) -> None:
    """Also a changed byte in the weights, which torch.load lets pass."""
    experiment, path = tiny(), tmp_path / "final.ckpt"
    state = build_model(experiment).state_dict()
    torch.save({"experiment": experiment.identity(), "state_dict": state, "generator_steps": 3}, path)

    def is_same(found: Any) -> bool:
        weights = found[1].state_dict()
        return found[0].identity() == experiment.identity() and all(torch.equal(weights[k], state[k]) for k in state)

    assert refusals(path, 40, lambda: restore(path), is_same) >= 38


@pytest.mark.parametrize("content", [[1], {"experiment": 3, "state_dict": {}}, {"experiment": {}, "state_dict": []}])
def test_a_checkpoint_of_other_content(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"other\.ckpt: not a checkpoint of this suite"):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("content", [b"", b"garbage" * 99, b"seed: 0\n", b"PK\x03\x04" + b"cut off" * 9])
def test_a_file_that_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    """In words of this suite, not torch's about its own options."""
    (tmp_path / "other.ckpt").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"other\.ckpt: not readable as a checkpoint \(cut off, or no checkpoint: a run"
    ):
        load_checkpoint(tmp_path / "other.ckpt")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_not_run(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "evil.ckpt", tmp_path / "was_run"
    content = {"experiment": {}, "state_dict": {}, "key": "k", "features": Touch(mark)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"evil\.ckpt: not readable as a checkpoint"):
        load_checkpoint(path)
    assert read_real(path, "k") is None
    np.save(tmp_path / "train_labels.npy", np.array([Touch(mark)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"train_labels\.npy: not readable"):
        read_labels(tmp_path, None, "train")  # type: ignore[arg-type]
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))
    assert mark.exists(), "the code would have been seen"


def test_a_damaged_record(tiny: TinyExperiment, tmp_path: Path) -> None:
    """A digit changed into another one cannot be told; anything else is refused, or the record is whole."""
    experiment = tiny()
    path = record_path(tmp_path, experiment, "shapes")
    record = {"format": 1, "config": experiment.identity(), "data_id": "shapes", "environment": {"commit": "abc"}}
    write_json(path, record | {"metrics": {"rfid": 12.5, "psnr": 20.0}, "protocols": {"rfid": "a", "psnr": "b"}})
    seen = {"refused": 0, "same": 0, "other": 0}
    whole = path.read_bytes()
    for content in damaged(whole, 300):
        path.write_bytes(content)
        try:
            found = read_record(path)
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            seen["refused"] += 1
        else:
            assert all(isinstance(found[key], kind) for key, kind in KINDS.items())
            seen["same" if same_experiment(found, experiment) else "other"] += 1
            assert len(find_records(experiment, [tmp_path])) <= 1
    assert seen["refused"] > 200 and seen["other"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": [1]}, "damaged at config"),
        ({"metrics": {"rfid": "12"}}, "damaged at rfid"),
        ({"metrics": None}, "damaged at metrics"),
        ({"environment": "abc"}, "damaged at environment"),
    ],
)
def test_a_record_of_other_kinds(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    record = {"format": 1, "config": {}, "data_id": "shapes", "metrics": {}, "protocols": {}}
    write_json(tmp_path / "r.json", record | change)
    with pytest.raises(ValueError, match=rf"r\.json: {message}; delete it"):
        read_record(tmp_path / "r.json")
    (tmp_path / "r.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"r\.json: not a readable result record"):
        read_record(tmp_path / "r.json")


# ---- tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """A finished folder with checksums: 40 images of six tokens each in the training split, 20 in the other."""
    rng, sizes = np.random.default_rng(0), {"train": 40, "val": 20}
    meta = TokenMeta(
        tokenizer_digest="digest",
        model="vqgan",
        precision="32-true",
        codebook_size=500,
        grid_size=[2, 3],
        data_id="shapes",
        data={"data_seed": 0},
        num_classes=10,
        num_images=sizes,
        views={split: ["plain"] for split in SPLITS},
        labels_sha256=dict.fromkeys(SPLITS, ""),
    )
    for split in SPLITS:
        values_path(tmp_path, split).write_bytes(rng.integers(0, 500, (sizes[split], 6)).astype("<i4").tobytes())

    class Source:  # finish() saves the labels of its sources
        def __init__(self, size: int) -> None:
            self.labels = torch.arange(size) % 10

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.pipeline.token_writer.labels_of", lambda source: source.labels.numpy())
        finish(type("Job", (), {"meta": meta, "sources": {s: Source(sizes[s]) for s in SPLITS}}), tmp_path)  # type: ignore[arg-type]
    return tmp_path


def read_tokens(folder: Path) -> tuple[bytes, ...]:
    data = TokensDataModule(TokensConfig(path=str(folder), batch_size=4))
    data.setup()
    batches = [*data.ordered_train_dataloader(), *data.val_dataloader()]
    return tuple(torch.cat([batch[key] for batch in batches]).numpy().tobytes() for key in ("tokens", "label"))


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "train_labels.npy", "val_labels.npy"])
def test_damaged_tokens(tokens: Path, name: str) -> None:
    """Also an id changed into another of the codebook: the checksums of meta.json tell."""
    path, whole = tokens / name, read_tokens(tokens)
    assert refusals(path, 60, lambda: read_tokens(tokens), lambda found: found == whole) == 60


def test_damaged_metadata_of_tokens(tokens: Path) -> None:
    """What is not refused has changed a name in it, and serves the same tokens."""
    path, whole = tokens / "meta.json", read_tokens(tokens)
    for content in damaged(path.read_bytes(), 200):
        path.write_bytes(content)
        try:
            assert read_tokens(tokens) == whole
        except ValueError as error:
            assert str(tokens) in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    "change",
    [
        *({"grid_size": 6}, {"grid_size": [2, "3"]}, {"grid_size": [6]}, {"num_images": {"train": 40}}),
        *({"num_images": [40, 20]}, {"views": {"train": 1, "val": 1}}, {"sha256": []}, {"data": {}}, {"model": None}),
        {"codebook_size": 1.5},
    ],
)
def test_metadata_of_other_kinds(tokens: Path, change: dict[str, Any]) -> None:
    path = tokens / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"meta\.json: damaged, an entry is not what it should be; delete"):
        read_tokens(tokens)


# ---- codebooks, reference features


def test_a_damaged_codebook(tmp_path: Path) -> None:
    path, table = tmp_path / "kmeans.safetensors", torch.randn(32, 40)
    save_codebook(path, table, {"seed": 0}, "shapes", 100, {})
    refused = refusals(path, 100, lambda: read_codebook(path, (32, 40)), lambda found: torch.equal(found, table))
    assert refused >= 95


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_codebook_that_is_not_finite(tmp_path: Path, bad: float) -> None:
    path, table = tmp_path / "kmeans.safetensors", torch.randn(32, 40)
    table[3, 4] = bad
    save_codebook(path, table, {}, "shapes", 100, {})
    with pytest.raises(ValueError, match=r"kmeans\.safetensors: a damaged codebook"):
        read_codebook(path, (32, 40))


def test_damaged_reference_features_are_made_again(tmp_path: Path) -> None:
    """They are a cache: nothing is lost, so nothing is said."""
    path, real = tmp_path / "reference.pt", RealImages.of([torch.randn(20, 7)])
    torch.save({"key": "k", **real._asdict()}, path)
    whole, found = path.read_bytes(), read_real(path, "k")
    assert found is not None and torch.equal(found.covariance, real.covariance) and read_real(path, "other") is None
    answers = []
    for content in damaged(whole, 60):
        path.write_bytes(content)
        answers.append(read_real(path, "k"))
    assert answers.count(None) >= 57
    assert all(torch.equal(answer.covariance, real.covariance) for answer in answers if answer is not None)
    assert read_real(tmp_path / "missing.pt", "k") is None


# ---- images


@pytest.fixture
def pixels() -> Iterator[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, about odd metadata
        yield Image.fromarray(values)


@pytest.mark.parametrize(("suffix", "enough"), [("png", 140), ("jpg", 90), ("webp", 60), ("bmp", 60), ("tif", 60)])
def test_a_damaged_image(pixels: Image.Image, tmp_path: Path, suffix: str, enough: int) -> None:
    """Refused, or decoded: most formats have no checksum, and a changed pixel is a pixel."""
    path = tmp_path / f"image.{suffix}"
    pixels.save(path)
    assert refusals(path, 150, lambda: read_image(str(path)), lambda image: image.mode == "RGB") >= enough


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_image_ends_a_command_with_one_line(
    pixels: Image.Image, tmp_path: Path, capsys: pytest.CaptureFixture[str], num_workers: int
) -> None:
    """Also out of a loader's process, whose errors arrive with their traceback."""
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            pixels.save(tmp_path / folder / f"{i}.png")
    path = tmp_path / "train/2.png"
    path.write_bytes(path.read_bytes()[:500])
    config = ImageFolderConfig(image_size=16, batch_size=4)
    data = ImageFolderDataModule(config, str(tmp_path), num_workers=num_workers)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(SystemExit), user_errors():
        list(data.train_dataloader())
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith(f"error: {path}: cannot be decoded")
