"""Where sampled images go: one grid, a folder of PNG files, or an .npz file. Files appear whole or not at all.

A JSON file beside the images says what they are, so that images of another kind are neither continued nor overwritten.

Shapes: N images, H = W pixels.
"""

import re
import zipfile
from collections.abc import Iterable
from json import loads
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from experiments.runtime.files import replacing, write_json
from lightning_modules.archives import readable
from lightning_modules.checks import require
from lightning_modules.figures import num_columns

FORMATS = {"grid": ".png", "png": "", "npz": ".npz"}  # and how their names end; png is a folder


class Images(NamedTuple):
    """Finished images of a batch."""

    ids: list[int]
    labels: Tensor  # (B,)
    pixels: Tensor  # (B, 3, H, W) uint8


def note_path(out: Path, form: str) -> Path:
    """The JSON file that says what the images are."""
    return out / "samples.json" if form == "png" else out.with_name(f"{out.name}.json")


def numbers_in(folder: Path) -> set[int]:
    names = (re.fullmatch(r"(\d{6,})(-class\d+)?\.png", path.name) for path in folder.glob("*.png"))
    return {int(name[1]) for name in names if name}


def check_out(out: Path, form: str, description: dict[str, Any], num: int) -> bool:
    """Whether the `num` images are all there. Raises ValueError where something else is."""
    ending = FORMATS[form]
    require(out.suffix == ending or form == "png", f"--out {out}: the name of a {form} ends in {ending}")
    if not out.exists():
        return False
    advice = "choose another --out or delete it"
    require(out.is_dir() == (form == "png"), f"--out {out}: is {'a folder' if out.is_dir() else 'a file'}: {advice}")
    note = note_path(out, form)
    if not note.is_file():
        if form == "png" and not any(out.iterdir()):
            return False
        raise ValueError(f"--out {out}: is there already, and not made by this command: {advice}")
    with readable(note, f": {advice}"):
        found = loads(note.read_text())
    if found != description:
        key = next(key for key in {**description, **found} if found.get(key) != description.get(key))
        differs = f"{key} {found.get(key)}, not {description.get(key)}"
        raise ValueError(f"--out {out}: holds other samples ({differs}): {advice}")
    if form != "png":
        return True
    numbers = numbers_in(out)  # with --accept they are those of the best candidates
    return len(numbers) >= num if description["accept"] < 1 else numbers.issuperset(range(num))


def start(out: Path, form: str, description: dict[str, Any]) -> set[int]:
    """Notes what the images are; the numbers of those that are there already."""
    (out if form == "png" else out.parent).mkdir(parents=True, exist_ok=True)
    write_json(note_path(out, form), description)
    return numbers_in(out) if form == "png" else set()


def write(out: Path, form: str, batches: Iterable[Images], num: int, num_classes: int, size: int) -> None:
    """Writes all batches; `num` images of `size` pixels, of `num_classes` classes in turn (0 = none)."""
    if form == "grid":
        pixels = torch.cat([batch.pixels for batch in batches])
        grid = make_grid(pixels, nrow=num_columns(num_classes), padding=2)  # (3, height, width)
        with replacing(out) as file:
            save_png(grid, file)
    elif form == "npz":
        with replacing(out) as file:
            write_npz(file, batches, num, num_classes, size)
    else:
        for ids, labels, pixels in batches:
            for number, label, image in zip(ids, labels.tolist(), pixels, strict=True):
                name = f"{number:06d}-class{label:03d}.png" if num_classes else f"{number:06d}.png"
                with replacing(out / name) as file:
                    save_png(image, file)


def write_npz(file: IO[bytes], batches: Iterable[Images], num: int, num_classes: int, size: int) -> None:
    """What np.savez(images, labels) writes, image by image: arr_0 (N, H, W, 3) uint8 and arr_1 (N,) int64."""
    all_labels = []
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as entry:
            header = {"descr": "|u1", "fortran_order": False, "shape": (num, size, size, 3)}
            np.lib.format.write_array_header_1_0(entry, header)
            for _, labels, pixels in batches:
                entry.write(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
                all_labels.append(labels.numpy())
        if num_classes:
            with archive.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, np.concatenate(all_labels))


def save_png(image: Tensor, file: IO[bytes]) -> None:
    """(3, H, W) uint8."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "png")
