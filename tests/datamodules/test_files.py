"""Files and folders named on a command line: their names, and how images of any size become squares."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.files import cut, frame, image_files, png_names


def photo(width: int, height: int) -> Image.Image:
    """Red to the left and right, blue above and below, grey in the middle."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[:, : width // 4], pixels[:, -(width // 4) :] = (255, 0, 0), (255, 0, 0)
    pixels[: height // 4], pixels[-(height // 4) :] = (0, 0, 255), (0, 0, 255)
    return Image.fromarray(pixels)


def test_crop_keeps_the_middle_and_pad_keeps_all() -> None:
    image = photo(64, 32)
    pixels, box = frame(image, 16, "crop")
    assert pixels.shape == (3, 16, 16) and box == (0, 0, 16, 16)
    assert pixels[:, 8, 0].tolist() != [255, 0, 0], "the sides are cut off"
    pixels, box = frame(image, 16, "pad")
    assert pixels.shape == (3, 16, 16) and box == (4, 0, 8, 16)
    assert cut(pixels, box).shape == (3, 8, 16)
    assert pixels[0, 8, 0] > 240 and pixels[2, 0, 8] > 240 and pixels[2, 15, 8] > 240, "the border is repeated"
    tall, box = frame(photo(3, 160), 16, "pad")
    assert tall.shape == (3, 16, 16) and box == (0, 7, 16, 1)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_an_image_of_the_models_size_stays_as_it_is(fit: str) -> None:
    image = photo(16, 16)
    pixels, box = frame(image, 16, fit)
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image)) and box == (0, 0, 16, 16)


def test_names_tell_all_images_apart(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/deep/y.png", "b/x.png", "c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(8, 8).save(tmp_path / name)
    files = image_files([tmp_path / "c.jpg", tmp_path / "a"])
    assert [file.name for file in files] == ["c.jpg", "deep/y.png", "x.png"]
    assert all(Path(file.path).is_file() for file in files)
    assert [file.name for file in image_files([tmp_path / "a", tmp_path / "b"])] == ["deep/y.png", "a/x.png", "b/x.png"]
    with pytest.raises(ValueError, match=r"c\.jpg: the name of 2 images"):
        image_files([tmp_path / "c.jpg", tmp_path / "c.jpg"])
    with pytest.raises(FileNotFoundError, match="absent"):
        image_files([tmp_path / "absent"])
    assert png_names(["c.jpg", "d/x.jpg", "d/x.png"]) == ["c.png", "d/x.jpg.png", "d/x.png.png"]
    for name in ("/etc/x", "../x"):
        with pytest.raises(ValueError, match="leads out"):
            png_names([name])
