"""The command that looks at every image of a folder once."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import experiments.check_data


def photo(seed: int, size: tuple[int, int] = (40, 32)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, place in enumerate(("train/cat", "train/dog", "val/cat")):
        (tmp_path / place).mkdir(parents=True)
        for i in range(3):
            photo(10 * number + i).save(tmp_path / place / f"{i}.png")
    return tmp_path


def checked(folder: Path, monkeypatch: pytest.MonkeyPatch, *keys: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check_data", "--data-dir", str(folder), "data.image_size=32", *keys])
    with pytest.raises(SystemExit) as end:
        experiments.check_data.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_sound_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(folder, monkeypatch) == 0
    shown = capsys.readouterr()
    assert "train: 6 images, 2 classes of 3 to 3" in shown.out and "val: 3 images, 2 classes of 0 to 3" in shown.out
    assert "shorter side: 32 to 32 pixels, median 32\nunusual: nothing\ncannot be read: 0 of 9" in shown.out
    assert "val: no images of 1 of 2 classes (dog)" in shown.err


def test_each_finding_is_a_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = folder / "train"
    (train / "cat/0.png").write_bytes((train / "cat/0.png").read_bytes()[:200])
    photo(50).convert("RGBA").save(train / "cat/clear.png")
    Image.fromarray(np.full((32, 32), 9999, np.uint16)).save(train / "cat/deep.png")
    photo(51, (20, 30)).save(train / "dog/small.png")
    photo(52, (40, 200)).save(train / "dog/long.png")
    (train / "dog/copy.png").write_bytes((train / "dog/1.png").read_bytes())
    (train / "dog/leak.png").write_bytes((folder / "val/cat/1.png").read_bytes())
    photo(53).save(train / "stray.png")
    photo(54).save(train / "dog/odd.png", exif=b"Exif\x00\x00garbage")
    (train / "dog/notes.TXT").touch()
    (train / "cat/.ipynb_checkpoints").mkdir()
    assert checked(folder, monkeypatch) == 1
    out = capsys.readouterr().out
    for line in (
        "  1 transparent, laid on white: train/cat/clear.png\n",
        "  1 gray of more than 8 bits, scaled to 8: train/cat/deep.png\n",
        "  1 shorter side below 32 pixels, enlarged: train/dog/small.png\n",
        "  1 more than 3 times as long as wide, mostly cut off: train/dog/long.png\n",
        "  2 the same file more than once: train/dog/1.png, train/dog/copy.png\n",
        "  2 the same file in training and in validation: train/dog/leak.png, val/cat/1.png\n",
        "  1 not read: images beside the class folders: train/stray.png\n",
        "  1 not read: files of other kinds (.txt): train/dog/notes.TXT\n",
        "  1 not read: hidden folders and caches: train/cat/.ipynb_checkpoints\n",
        "  1 EXIF or later frames are damaged, the first is read upright: train/dog/odd.png\n",
        f"cannot be read: 1 of 16\n  {train}/cat/0.png: cannot be decoded",
    ):
        assert line in out


def test_a_flat_folder_of_photographs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(20):
        photo(i).save(tmp_path / f"IMG {i}.JPG", "jpeg")
    assert checked(tmp_path, monkeypatch) == 0
    assert "train: 18 images, one class\nval: 2 images, one class" in capsys.readouterr().out
    assert checked(tmp_path / "nowhere", monkeypatch) == 1
