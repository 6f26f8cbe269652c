"""A disk without room: one line that says so, the old file whole, no half file left, and the command goes on later.

A limit on the size of files stands in for the disk: the write that exceeds it fails as it would on a full disk.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyExperiment
from token_cases import contents, run, write_all

from datamodules.cache import cached
from experiments.pipeline.codebooks.build import read_codebook, save_codebook
from experiments.pipeline.codebooks.kmeans import State, StateFile
from experiments.runtime.errors import DISK_FULL, user_errors
from experiments.runtime.files import write_json
from lightning_modules.metrics.fidelity import Fidelity


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def said_in_one_line(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    with pytest.raises(SystemExit) as stop, user_errors():
        yield
    assert stop.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ") and message.endswith(f" {DISK_FULL}\n") and message.count("\n") == 1


def test_no_room_for_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"old": 1})
    with said_in_one_line(capsys), room_for(1000):
        write_json(path, {"new": "x" * 10_000})
    assert path.read_text() == '{\n "old": 1\n}\n' and list(tmp_path.iterdir()) == [path]


def test_no_room_for_a_codebook(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, old = tmp_path / "random.safetensors", torch.randn(4, 4)
    save_codebook(path, old, {}, "shapes", 9, {})
    with said_in_one_line(capsys), room_for(10_000):
        save_codebook(path, torch.randn(1000, 40), {}, "shapes", 9, {})
    assert torch.equal(read_codebook(path, (4, 4)), old) and list(tmp_path.iterdir()) == [path]


def test_no_room_for_the_state_of_clustering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiments.pipeline.codebooks.kmeans.SAVE_SECONDS", 0.0)
    keep = StateFile(tmp_path / "state.partial")
    keep(State("one", torch.zeros(3)))
    with said_in_one_line(capsys), room_for(10_000):
        keep(State("two", torch.zeros(3), centres=torch.randn(1000, 40)))
    assert torch.load(tmp_path / "state.partial", weights_only=True)["identity"] == "one"


def test_no_room_for_reference_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metric = Fidelity.__new__(Fidelity)
    torch.nn.Module.__init__(metric)
    metric.extractor = type("Extractor", (), {"id": "none"})
    metric.kid = metric.prc = False
    monkeypatch.setattr(Fidelity, "device", torch.device("cpu"))
    monkeypatch.setattr(Fidelity, "extract", lambda self, images: (images, images))
    with said_in_one_line(capsys), room_for(10_000):
        metric.load_or_compute_real(tmp_path / "real.pt", "key", [torch.randn(100, 400)])
    assert not list(tmp_path.iterdir())


def test_no_room_for_decoded_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only save time: the run goes on without, and says what that costs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    with room_for(1000), pytest.warns(UserWarning, match="no cache could be written .* every run will decode"):
        arrays = cached(tmp_path / "data", "train.npz", "key", lambda: {"images": np.ones(5000)})
    assert arrays["images"].sum() == 5000
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_no_room_for_tokens(
    tiny: TinyExperiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, whole = write_all(tiny, tmp_path, monkeypatch)
    out = ["--out", str(tmp_path / "second")]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, room_for(6000):  # train.bin takes 20 * 2 * 64 * 4 = 10,240 bytes
        run(monkeypatch, *command, *out)
    assert stop.value.code == 1 and DISK_FULL in capsys.readouterr().err
    assert not (tmp_path / "second/meta.json").exists()
    run(monkeypatch, *command, *out)
    assert contents(tmp_path / "second") == contents(whole)


def test_no_room_for_an_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """numpy raises an OSError without a number: "100000 requested and 109 written"."""
    with said_in_one_line(capsys), room_for(1000):
        np.save(tmp_path / "labels.npy", np.zeros(100_000))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_device(capsys: pytest.CaptureFixture[str]) -> None:
    with said_in_one_line(capsys), open("/dev/full", "wb") as file:
        np.save(file, np.zeros(100_000))
