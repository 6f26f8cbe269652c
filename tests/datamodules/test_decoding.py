"""The policy of decoding, on files of each kind whose right pixels are known."""

import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import decoding
from datamodules.decoding import MAX_PIXELS, notes_on, read_image

RAMP = np.linspace(0, 65535, 1024).reshape(32, 32)
GRAY = (RAMP / 257).round()


def pixels(path: Path) -> np.ndarray:
    """(H, W, 3)."""
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def photo(size: tuple[int, int] = (24, 16)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def save_tiff(path: Path, values: np.ndarray, bits: int, zero_is_white: bool = False) -> None:
    """Gray values (H, W) of 8, 12 or 16 bits, W even, as the plainest TIFF file."""
    if bits == 12:  # two values in three bytes
        high, low = values.astype(int).reshape(-1, 2).T
        content = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], 1).astype(np.uint8).tobytes()
    else:
        content = values.astype(f"<u{bits // 8}").tobytes()
    height, width = values.shape
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 1 - zero_is_white, 273: 8, 277: 1, 278: height}
    entries[279] = len(content)
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    directory = struct.pack("<H", len(entries)) + fields + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(content)) + content + directory)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_gray_of_16_bits_is_that_of_8(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16)).save(tmp_path / f"deep.{suffix}", "PPM" if suffix == "pgm" else None)
    assert np.abs(pixels(tmp_path / f"deep.{suffix}") - GRAY[..., None]).max() <= 1


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    """The scale is the format's, not the image's."""
    Image.fromarray(np.full((4, 4), 257 * 3, np.uint16)).save(tmp_path / "dark.png")
    assert (pixels(tmp_path / "dark.png") == 3).all()


def test_gray_of_32_bits_is_read_as_16_bits_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.tiff"
    Image.fromarray(RAMP.astype(np.int32)).save(path)
    assert np.abs(pixels(path) - GRAY[..., None]).max() <= 1
    for values in (RAMP * 9, RAMP - 1):
        Image.fromarray(values.astype(np.int32)).save(path)
        with pytest.raises(ValueError, match=r"deep\.tiff: values from -?\d+ to \d+: .* to 65535, white: scale it"):
            read_image(str(path))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff: floating-point pixels.* 8 or 16 bits"):
        read_image(str(tmp_path / "float.tiff"))


def test_a_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    for bits, values in {16: RAMP, 8: GRAY}.items():
        save_tiff(tmp_path / "negative.tif", values, bits, zero_is_white=True)
        assert np.abs(pixels(tmp_path / "negative.tif") - (255 - GRAY)[..., None]).max() <= 1


def test_white_of_12_bits_is_4095(tmp_path: Path) -> None:
    save_tiff(tmp_path / "deep.tif", RAMP / 16, 12)
    assert np.abs(pixels(tmp_path / "deep.tif") - GRAY[..., None]).max() <= 1


def over(mode: str) -> Image.Image:
    """Transparent on its left half, red below; green on the right."""
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :4], rgba[:, 4:] = (255, 0, 0, 0), (0, 200, 0, 255)
    image = Image.fromarray(rgba)
    return image.quantize(8) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGBA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("P", "png"), ("RGBA", "gif"), ("LA", "png")],
)
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    over(mode).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = pixels(path)
    assert (image[:, :4] == 255).all()
    assert np.abs(image[0, 7] - ((117, 117, 117) if mode == "LA" else (0, 200, 0))).max() <= 2


def test_half_transparent_pixels_are_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 255, 51)).save(tmp_path / "a.png")
    assert np.abs(pixels(tmp_path / "a.png")[0, 0] - (204, 204, 255)).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "1", "I;16"])
def test_one_transparent_value(tmp_path: Path, mode: str) -> None:
    """As a PNG without alpha may name it."""
    path, black = tmp_path / "a.png", (0, 0, 0) if mode == "RGB" else 0
    image = Image.new(mode, (4, 4), black)
    image.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else {"1": 1, "I;16": 9 * 257}.get(mode, 9))
    image.save(path, transparency=black)
    found = pixels(path)
    assert (found[3, 3] == 255).all() and (found[0, 0] == (255 if mode == "1" else 9)).all()


def test_opaque_images_keep_every_pixel(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png")
    photo().convert("RGBA").save(tmp_path / "b.png")
    assert (pixels(tmp_path / "a.png") == np.asarray(photo())).all()
    assert (pixels(tmp_path / "b.png") == np.asarray(photo())).all()


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_pictures_are_turned_as_the_camera_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    """The stored pixels are what the orientation, taken back, makes of the upright picture."""
    turn = Image.Transpose
    back = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE]
    back += [turn.ROTATE_90, turn.TRANSVERSE, turn.ROTATE_270]
    upright = Image.fromarray(np.kron(np.arange(6).reshape(2, 3) * 50, np.ones((8, 8))).astype(np.uint8)).convert("RGB")
    stored = upright if orientation == 1 else upright.transpose(back[orientation - 2])
    options = {"jpg": {"quality": 100}, "webp": {"lossless": True}}.get(suffix, {})
    stored.save(tmp_path / f"a.{suffix}", exif=oriented(orientation), **options)  # type: ignore[arg-type]
    found = pixels(tmp_path / f"a.{suffix}")
    assert found.shape == (16, 24, 3) and np.abs(found - np.asarray(upright)).max() <= 3


def test_damaged_exif_is_no_reason_to_refuse_an_image(tmp_path: Path) -> None:
    photo().save(tmp_path / "a.png", exif=b"Exif\x00\x00garbage, and no TIFF header")
    assert (pixels(tmp_path / "a.png") == np.asarray(photo())).all()


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(tmp_path / f"a.{suffix}") == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_colours_become_rgb(tmp_path: Path, mode: str) -> None:
    color = Image.new("RGB", (8, 8), "white").convert(mode)
    color.save(path := tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"))
    assert pixels(path).min() >= 254


def test_a_scan_beyond_pils_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS > 200e6
    Image.new("1", (30, 20), 1).save(tmp_path / "scan.png")
    assert read_image(str(tmp_path / "scan.png")).size == (30, 20)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 599)
    for limit in (MAX_PIXELS, 100):  # ours, and PIL's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with (
            warnings.catch_warnings(),
            pytest.raises(ValueError, match=r"scan\.png: too large.* 599 pixels: save a sm"),
        ):
            warnings.simplefilter("error")
            read_image(str(tmp_path / "scan.png"))


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo().save(tmp_path / "a.png")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"a\.png: may not be read"):
        read_image(str(tmp_path / "a.png"))


NOTES: dict[str, Callable[[Path], None]] = {
    "gray of more than 8 bits": lambda path: Image.fromarray(RAMP.astype(np.uint16)).save(path),
    "transparent": lambda path: over("RGBA").save(path),
    "turned upright": lambda path: photo().save(path, exif=oriented(6)),
    "several frames": lambda path: photo().save(path, save_all=True, append_images=[over("RGB").resize((24, 16))]),
    "named .png, but a JPEG file": lambda path: photo().save(path, "jpeg"),
    "CMYK": lambda path: photo().convert("CMYK").save(path, "jpeg"),
}


@pytest.mark.parametrize("note", NOTES)
def test_what_was_done_to_an_image_is_said(tmp_path: Path, note: str) -> None:
    NOTES[note](tmp_path / "a.png")
    assert any(note in text for text in notes_on(str(tmp_path / "a.png")))
    photo().save(tmp_path / "b.png")
    assert notes_on(str(tmp_path / "b.png")) == []
