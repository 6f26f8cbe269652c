"""Images that a user names, through a tokenizer: reconstructions, their errors, and token ids with the files' names.

Shapes: B images a batch, N in all, S x S pixels, h x w tokens.
"""

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchvision.utils import make_grid

from datamodules.arrays import to_unit_range
from datamodules.files import Framed, ImageFile, cut, png_names, read_framed
from experiments.config.experiment import RuntimeConfig
from experiments.pipeline.sample_files import save_png
from experiments.runtime.files import replacing, write_json
from experiments.runtime.progress import progress
from experiments.runtime.ranks import check_accelerator
from lightning_modules.archives import readable, weights_hash
from lightning_modules.checks import require
from lightning_modules.metrics.extractors import to_uint8
from lightning_modules.metrics.reconstruction import ReconstructionMetrics
from lightning_modules.tokenizer import Tokenizer

NUM_ON_SHEET = 32  # images on the contact sheet, the first ones
FORMAT = 1
HOW = {
    "crop": "shorter side resized, centre cropped",
    "pad": "longer side resized, border repeated, measured without it",
}


class Batch(NamedTuple):
    """Images of a batch and what the tokenizer makes of them, on the CPU."""

    files: list[ImageFile]
    boxes: list[tuple[int, int, int, int]]
    pixels: Tensor  # (B, 3, S, S) uint8
    reconstruction: Tensor  # (B, 3, S, S) in [-1, 1]
    indices: Tensor  # (B, h, w)


def tokenizer_for(path: str, accelerator: str) -> Tokenizer:
    """The tokenizer on its device. Raises ValueError."""
    check_accelerator(RuntimeConfig(accelerator=accelerator))
    device = L.Fabric(accelerator=accelerator, devices=1).device
    return Tokenizer.from_pretrained(path).to(device)


@torch.no_grad()
def batches_of(
    tokenizer: Tokenizer, files: Sequence[ImageFile], fit: str, batch_size: int, left_out: dict[str, str]
) -> Iterator[Batch]:
    """`left_out` takes the names of images that cannot be decoded, with reasons. Raises ValueError: none can."""
    with progress("image", len(files)) as show:
        for first in range(0, len(files), batch_size):
            part, framed = list[ImageFile](), list[Framed]()
            for file in files[first : first + batch_size]:
                try:
                    framed.append(read_framed(file, tokenizer.image_size, fit))
                    part.append(file)
                except ValueError as error:
                    left_out[file.name] = str(error)
            require(len(left_out) < len(files), next(iter(left_out.values()), ""))
            if part:
                pixels = torch.stack([one.pixels for one in framed])
                output = tokenizer(to_unit_range(pixels).to(tokenizer.device))
                reconstruction = output.reconstruction.clamp(-1, 1).cpu()
                yield Batch(part, [one.box for one in framed], pixels, reconstruction, output.indices.cpu())
            show(min(batch_size, len(files) - first))


def require_all(left_out: dict[str, str], total: int, out: Path) -> None:
    """Raises ValueError that names what is not in `out`."""
    reasons = list(left_out.values())
    more = f"; and {len(reasons) - 2} more, all in its .json" if len(reasons) > 2 else ""
    others = f"{len(reasons)} of {total} images are not in {out}"
    require(not reasons, f"{others}: {'; '.join(reasons[:2])}{more}")


# ---- reconstructions


def reconstruct(
    tokenizer: Tokenizer, files: Sequence[ImageFile], out: Path, fit: str, batch_size: int, lpips: str = "auto"
) -> dict[str, Any]:
    """Writes pairs/, sheet.png, images.npz, metrics.csv and summary.json to `out`; returns what the last holds.

    SSIM is left out of the CSV and its mean where it cannot be had, of images of less than 11 pixels at a side. Images
    that cannot be decoded are left out and named there. Raises ValueError: none can.
    """
    measure = ReconstructionMetrics(tokenizer.image_size, lpips=lpips, feature_distance=False).to(tokenizer.device)
    names = dict(zip(files, png_names([file.name for file in files]), strict=True))
    left_out: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    shown: list[Tensor] = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".images-") as folder:
        arrays: dict[str, np.ndarray] = {}  # on disk: a folder of images may be larger than the memory
        for batch in batches_of(tokenizer, files, fit, batch_size, left_out):
            made = to_uint8(batch.reconstruction)  # (B, 3, S, S)
            images = {"originals": batch.pixels, "reconstructions": made}
            kept = {name: value.permute(0, 2, 3, 1) for name, value in images.items()} | {
                "indices": batch.indices.int()
            }
            for name, value in kept.items():
                if name not in arrays:
                    path, shape = Path(folder) / f"{name}.npy", (len(files), *value.shape[1:])
                    arrays[name] = np.lib.format.open_memmap(path, "w+", value.numpy().dtype, shape)
                arrays[name][len(rows) : len(rows) + len(value)] = value.numpy()
            for index, (file, box) in enumerate(zip(batch.files, batch.boxes, strict=True)):
                pair = [cut(image[index], box) for image in (batch.reconstruction, to_unit_range(batch.pixels))]
                values = measure.of_each(*(part[None].to(tokenizer.device) for part in pair))
                rows.append({"file": file.name, **{name: float(value) for name, value in values.items()}})
                triple = triptych(batch.pixels[index], made[index])
                write_png(out / "pairs" / names[file], torch.cat([cut(part, box) for part in triple], 2))
                if len(shown) < 3 * NUM_ON_SHEET:
                    shown += triple
        with replacing(out / "images.npz") as archive:
            filled: dict[str, Any] = {name: array[: len(rows)] for name, array in arrays.items()}
            np.savez(archive, names=np.array([row["file"] for row in rows]), **filled)
    write_png(out / "sheet.png", make_grid(torch.stack(shown), nrow=12, padding=2, pad_value=255))
    write_csv(out / "metrics.csv", rows)
    measured = {name: np.array([row[name] for row in rows]) for name in measure.protocols}
    counts = {name: np.isfinite(values).sum() for name, values in measured.items()}
    summary = {
        "images": len(rows),
        "left_out": left_out,
        "fit": f"{fit}: {HOW[fit]}",
        "image_size": tokenizer.image_size,
        "metrics": {name: float(np.nanmean(measured[name])) for name in measured if counts[name]},
        "protocols": {name: f"{protocol}/{fit}/n{counts[name]}" for name, protocol in measure.protocols.items()},
        "weights": weights_hash(tokenizer.state_dict()),
    }
    write_json(out / "summary.json", summary)
    return summary


def triptych(original: Tensor, reconstruction: Tensor) -> list[Tensor]:
    """Original, reconstruction and absolute error, (3, S, S) uint8 each."""
    return [original, reconstruction, (original.int() - reconstruction.int()).abs().to(torch.uint8)]


def write_png(path: Path, image: Tensor) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        save_png(image, file)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: "" if value != value else value for key, value in row.items()} for row in rows)  # NaN
    with replacing(path) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


# ---- tokens


def tokenize(
    tokenizer: Tokenizer, files: Sequence[ImageFile], out: Path, fit: str, batch_size: int
) -> tuple[np.ndarray, dict[str, str]]:
    """Writes tokens.npy, (N, h, w) int32, and tokens.json, which names the files, to `out`; returns the tokens, and why
    which images are left out, as they cannot be decoded.

    Raises ValueError: a tokenizer without codes, or no image that can be decoded.
    """
    tokenizer.config.check_tokens()
    indices, boxes, names = [], [], list[str]()
    left_out: dict[str, str] = {}
    for batch in batches_of(tokenizer, files, fit, batch_size, left_out):
        names += [file.name for file in batch.files]
        indices.append(batch.indices.numpy().astype("<i4"))
        boxes += batch.boxes
    tokens = np.concatenate(indices)
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / "tokens.npy") as file:
        np.save(file, tokens)
    note = {
        "format": FORMAT,
        "names": names,
        "left_out": left_out,
        "boxes": boxes,  # top, left, height and width of each image in its square
        "fit": fit,
        "image_size": tokenizer.image_size,
        "codebook_size": tokenizer.config.codebook_size,
        "weights": weights_hash(tokenizer.state_dict()),
    }
    write_json(out / "tokens.json", note)
    return tokens, left_out


def read_tokens(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Tokens (N, h, w) of a folder that `tokenize` wrote, with its tokens.json; of an .npy file alone with {}.

    Raises ValueError that names the file.
    """
    array = path / "tokens.npy" if path.is_dir() else path
    with readable(array, ": give a folder made by `tokenize --images`, or an .npy file of token ids"):
        tokens = np.load(array, allow_pickle=False)
    is_ids = tokens.ndim == 3 and np.issubdtype(tokens.dtype, np.integer)
    require(is_ids, f"{array}: {tokens.dtype} {tokens.shape}, not whole numbers (N, h, w)")
    note: dict[str, Any] = {}
    if path.is_dir():
        with readable(path / "tokens.json"):
            note = json.loads((path / "tokens.json").read_text())
            require(note["format"] == FORMAT, f"format {note['format']}, this version reads {FORMAT}")
            counts = {len(note["names"]), len(note["boxes"]), len(tokens)}
            require(len(counts) == 1, f"names {len(note['names'])} images, tokens.npy holds {len(tokens)}")
    return tokens, note


@torch.no_grad()
def detokenize(tokenizer: Tokenizer, source: Path, out: Path, batch_size: int) -> int:
    """Writes a PNG file for each image of `source` (see `read_tokens`) to `out`, and returns their number.

    Raises ValueError: the tokens are another tokenizer's, or do not fit this one.
    """
    tokens, note = read_tokens(source)
    if note:
        made, ours = note["weights"], weights_hash(tokenizer.state_dict())
        require(made == ours, f"{source}: made by a tokenizer of weights {made}, not {ours}")
    names = png_names(note.get("names") or [f"{number:06d}" for number in range(len(tokens))])
    boxes = note.get("boxes") or [(0, 0, tokenizer.image_size, tokenizer.image_size)] * len(tokens)
    with progress("image", len(tokens)) as show:
        for first in range(0, len(tokens), batch_size):
            ids = torch.from_numpy(tokens[first : first + batch_size].astype(np.int64))
            pixels = to_uint8(tokenizer.decode_indices(ids.to(tokenizer.device))).cpu()  # (B, 3, S, S)
            for number, image in enumerate(pixels, first):
                write_png(out / names[number], cut(image, boxes[number]))
            show(len(ids))
    return len(tokens)
