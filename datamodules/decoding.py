"""How an image file becomes RGB pixels: one policy for training, tokens, codebooks, references and commands.

- Depth: gray of more than 8 bits is scaled to 8. White is 65,535 (4,095 in a 12-bit TIFF), not the largest value that
  happens to occur. Colours of 16 bits lose their lower 8. Floating-point pixels are refused: their white is not stated.
- Colour: gray, palettes and CMYK become RGB. Colour profiles are not applied.
- Transparency is laid on white, so that colours of invisible pixels do not count.
- EXIF orientation is applied, as cameras store turned pictures; one that cannot be read counts as upright.
- Animated files and files of several pages: the first frame.
- Size: up to `MAX_PIXELS`, which take 1.6 GB as RGB. Larger images are refused.

`VERSION` is part of the identity of image folders (docs/identity.md): change it with what changes pixels.
"""

import os
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base as Exif

VERSION = 2  # 1: no depths, transparency or orientation
MAX_PIXELS = 2**29
BACKGROUND = (255, 255, 255)
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # PIL's own limit takes scans of 180 megapixels for an attack


class Refused(ValueError):
    """A sound image whose pixels have no stated meaning."""


def read_image(path: str) -> Image.Image:
    """Decodes one file to RGB by the policy above.

    Raises:
        ValueError: the file is missing, damaged, no image, or refused.
        PermissionError: it may not be read.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            with suppress(Exception):  # damaged EXIF, which raises many kinds
                ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except PermissionError:
        raise PermissionError(f"{path}: may not be read: ask its owner for the permission") from None
    except Refused as reason:
        raise ValueError(f"{path}: {reason}") from None
    except Image.DecompressionBombError:
        advice = "save a smaller copy of it, or delete it"
        raise ValueError(f"{path}: too large, it has more than {MAX_PIXELS:,} pixels: {advice}") from None
    except Exception as error:  # by format PIL raises OSError, SyntaxError, struct.error, zlib.error and more
        raise ValueError(f"{path}: cannot be decoded ({error}); copy it again from its source or delete it") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image in RGB. Raises Refused for values without a stated white, ValueError for modes PIL cannot turn."""
    if image.mode == "F":
        raise Refused("floating-point pixels, whose white is not stated: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    background = Image.new("RGBA", image.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, image.convert("RGBA")).convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Gray of more than 8 bits as L or, where one value is transparent, LA. Raises Refused for values beyond white."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    white = 4095 if 12 in tags.get(TiffImagePlugin.BITSPERSAMPLE, ()) else 65535
    values = np.asarray(image)  # (H, W) uint16 or int32
    if values.min() < 0 or values.max() > white:
        reach = f"values from {values.min()} to {values.max()}"
        raise Refused(f"{reach}: gray of more than 8 bits is read from 0, black, to {white}, white: scale it to that")
    gray = (values.astype(np.uint32) * 255 + white // 2) // white
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # 0 is white, which PIL undoes for 8 bits alone
        gray = 255 - gray
    result = Image.fromarray(gray.astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        result.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return result


def notes_on(path: str) -> list[str]:
    """What the policy does to an image file beyond plain decoding, in words; looks at its header, not its pixels.

    Raises one of many kinds of errors for EXIF or later frames that are damaged; `read_image` reads the first frame.
    """
    suffix = os.path.splitext(path)[1].lower()
    with Image.open(path) as image:
        kind = "JPEG" if image.format == "MPO" else image.format  # several views, as some phones save them
        notes = {
            "gray of more than 8 bits, scaled to 8": image.mode.startswith("I"),
            "colours of 16 bits, cut to 8": image.mode.startswith("RGB") and ";16" in str(image.tile),
            "transparent, laid on white": image.has_transparency_data,
            "turned upright, as its EXIF says": image.getexif().get(Exif.Orientation, 1) != 1,
            "several frames or pages, the first is read": getattr(image, "n_frames", 1) > 1,
            "CMYK, converted without its colour profile": image.mode == "CMYK",
            f"named {suffix}, but a {kind} file": Image.registered_extensions().get(suffix) != kind,
        }
    return [note for note, holds in notes.items() if holds]
