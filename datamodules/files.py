"""Images that are named on a command line: files and folders, of any size, brought to the size of a model.

Shapes: S = side in pixels that a model takes.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from datamodules.decoding import read_image
from datamodules.folders import list_images


class ImageFile(NamedTuple):
    path: str
    name: str  # its path below the folder that was named, or its file name; different for all


class Framed(NamedTuple):
    pixels: Tensor  # (3, S, S) uint8
    box: tuple[int, int, int, int]  # top, left, height and width of what the image takes of the square


def image_files(paths: Sequence[str | Path]) -> list[ImageFile]:
    """The files in this order, and all images below the folders among them, those of a folder sorted.

    Raises ValueError or FileNotFoundError: one is not there, a folder holds no image, two images have one name.
    """
    found: list[ImageFile] = []
    roots: list[str] = []
    for given in (Path(path).expanduser() for path in paths):
        if given.is_file():
            found.append(ImageFile(str(given), given.name))
        else:
            files = list_images(given, class_folders=False).paths
            found += [ImageFile(path, Path(path).relative_to(given).as_posix()) for path in files]
        roots += [given.absolute().parent.name if given.is_file() else given.resolve().name] * (len(found) - len(roots))
    counts = Counter(file.name for file in found)
    named = [
        ImageFile(file.path, f"{root}/{file.name}" if counts[file.name] > 1 else file.name)
        for file, root in zip(found, roots, strict=True)
    ]
    (name, times), *_ = Counter(file.name for file in named).most_common(1)
    if times > 1:
        raise ValueError(
            f"{name}: the name of {times} images that were given; name each once, or fewer folders at once"
        )
    return named


def png_names(names: Sequence[str]) -> list[str]:
    """A .png file for each image: in place of its own ending, or after it where two would be the same.

    Raises ValueError for a name that leads out of the folder.
    """
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name}: a name that leads out of the folder to write")
    short = [Path(name).with_suffix(".png").as_posix() for name in names]
    counts = Counter(short)
    return [f"{name}.png" if counts[png] > 1 else png for name, png in zip(names, short, strict=True)]


def frame(image: Image.Image, size: int, fit: str) -> Framed:
    """An RGB image in a square, resized by PIL's antialiased bicubic filter.

    "crop": the shorter side becomes S, and the middle is kept, as in validation. "pad": the longer side becomes S, and
    the border's pixels are repeated around the image, all of which is kept.
    """
    if fit == "crop":
        resized = F.resize(image, [size], InterpolationMode.BICUBIC)
        return Framed(F.pil_to_tensor(F.center_crop(resized, [size, size])), (0, 0, size, size))
    scale = size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    pixels = F.pil_to_tensor(F.resize(image, [height, width], InterpolationMode.BICUBIC))  # (3, height, width)
    left, top = (size - width) // 2, (size - height) // 2
    padding = [left, top, size - width - left, size - height - top]
    return Framed(F.pad(pixels, padding, padding_mode="edge"), (top, left, height, width))


def read_framed(file: ImageFile, size: int, fit: str) -> Framed:
    """Raises ValueError, which names the file, when it cannot be decoded."""
    return frame(read_image(file.path), size, fit)


def cut(pixels: Tensor, box: Sequence[int]) -> Tensor:
    """What an image takes of its square: (..., S, S) -> (..., height, width)."""
    top, left, height, width = box
    return pixels[..., top : top + height, left : left + width]
