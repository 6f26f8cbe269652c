"""The files of a token folder, which `experiments.tokenize` writes and `TokensDataModule` reads.

    meta.json                   `TokenMeta`; written last, so that a folder without it is not finished
    train.bin, val.bin          (N, V, T) int32, little-endian: image, view, token in raster order
    train_labels.npy, val_labels.npy   (N,) int64

N images of a split in the image datamodule's order, V views of each (the first is the plain image), T = h * w tokens.
"""

import hashlib
import json
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
SPLITS = ("train", "val")
DTYPE = np.dtype("<i4")  # 100,000 codes do not fit uint16
CHECKED = 2**22  # ids checked at a time: 16 MiB
AGAIN = "delete the folder and make it again with `python -m experiments.tokenize`"


@dataclass
class TokenMeta:
    """Which tokenizer made the tokens, of which images, and what the files must look like."""

    tokenizer_digest: str  # experiment's digest and hash of the weights
    model: str
    precision: str  # the encoder's: 32-true | bf16-mixed
    codebook_size: int  # ids are in [0, codebook_size)
    grid_size: list[int]  # h, w
    data_id: str  # of the images
    data: dict[str, Any]  # the images' options: size, subset, seed, ...
    num_classes: int  # labels are in [0, num_classes)
    num_images: dict[str, int]  # by split
    views: dict[str, list[str]]  # by split: "plain", "mirrored", "crop"
    labels_sha256: dict[str, str]  # by split: of the plain int64 numbers
    sha256: dict[str, str] = field(default_factory=dict)  # by file; empty until all are finished
    format: int = FORMAT

    def shape(self, split: str) -> tuple[int, int, int]:
        """(N, V, T) of a split's array."""
        return self.num_images[split], len(self.views[split]), prod(self.grid_size)

    def row_bytes(self, split: str) -> int:
        """Bytes of one image's tokens, all views."""
        return prod(self.shape(split)[1:]) * DTYPE.itemsize


def tokens_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"


def read_meta(folder: Path) -> TokenMeta:
    """Raises ValueError that names the folder or file: not there, not finished, not readable, of another format."""
    path = folder / "meta.json"
    if not path.is_file():
        state = "its tokens are half written" if (folder / "state.json").is_file() else "there are no tokens"
        raise ValueError(f"{folder}: no meta.json, {state}: let `python -m experiments.tokenize` finish them first")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable ({error}); {AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format version {found}, this version reads {FORMAT}; {AGAIN}")
    if differ := {entry.name for entry in fields(TokenMeta)} ^ set(content):
        raise ValueError(f"{path}: entries missing or unknown: {', '.join(sorted(differ))}; {AGAIN}")
    if not is_sound(meta := TokenMeta(**content)):
        raise ValueError(f"{path}: damaged, an entry is not what it should be; {AGAIN}")
    return meta


def is_sound(meta: TokenMeta) -> bool:
    """Whether sizes are whole numbers above 0 and every other entry has its type."""
    try:
        sizes = [meta.codebook_size, meta.num_classes, *meta.grid_size]
        sizes += [size for split in SPLITS for size in (meta.num_images[split], len(meta.views[split]))]
        int(meta.data["data_seed"])
    except (TypeError, KeyError, ValueError):
        return False
    words = (meta.tokenizer_digest, meta.model, meta.precision, meta.data_id)
    tables = (meta.sha256, meta.labels_sha256, meta.data)
    is_kind = all(isinstance(word, str) for word in words) and all(isinstance(table, dict) for table in tables)
    return is_kind and len(meta.grid_size) == 2 and all(type(size) is int and size > 0 for size in sizes)


def open_tokens(folder: Path, meta: TokenMeta, split: str) -> np.memmap:
    """(N, V, T) int32, read-only, read from disk as it is used."""
    return np.memmap(tokens_path(folder, split), DTYPE, "r", shape=meta.shape(split))


def read_labels(folder: Path, meta: TokenMeta, split: str) -> np.ndarray:
    """(N,) int64. Raises ValueError that names the file when it is missing, damaged or does not fit the meta data."""
    path = labels_path(folder, split)
    try:
        labels = np.load(path, allow_pickle=False)
    except Exception as error:  # of a damaged file numpy raises what its pickle, zip or header reader does
        raise ValueError(f"{path}: not readable ({' '.join(str(error).split())}); {AGAIN}") from None
    if labels.shape != (meta.num_images[split],) or labels.dtype != np.int64:
        raise ValueError(f"{path}: {labels.dtype} {labels.shape}, not int64 ({meta.num_images[split]},); {AGAIN}")
    if labels.min() < 0 or labels.max() >= meta.num_classes:
        raise ValueError(
            f"{path}: labels from {labels.min()} to {labels.max()}, but there are {meta.num_classes} classes; {AGAIN}"
        )
    return labels


def check_files(folder: Path, meta: TokenMeta) -> None:
    """Sizes and labels of both splits first, then every id and, where they are kept, the checksums.

    Raises ValueError that names the file at fault.
    """
    for split in SPLITS:
        path = tokens_path(folder, split)
        if not path.is_file():
            raise ValueError(f"{path}: missing; {AGAIN}")
        expected = prod(meta.shape(split)) * DTYPE.itemsize
        if (size := path.stat().st_size) != expected:
            raise ValueError(
                f"{path}: {size:,} bytes, but meta.json asks for {expected:,}: it is "
                f"{'cut off' if size < expected else 'too long'}; {AGAIN}"
            )
        read_labels(folder, meta, split)
    for split in SPLITS:
        check_ids(folder, meta, split)
        for path in (tokens_path(folder, split), labels_path(folder, split)):
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if meta.sha256.get(path.name, found) != found:
                raise ValueError(f"{path}: damaged, its checksum is not that of meta.json; {AGAIN}")


def check_ids(folder: Path, meta: TokenMeta, split: str) -> None:
    """Raises ValueError that names the first image with an id outside [0, codebook_size). Reads the file once."""
    tokens = open_tokens(folder, meta, split)
    images = max(1, CHECKED // prod(tokens.shape[1:]))
    for start in range(0, len(tokens), images):
        block = tokens[start : start + images]
        if block.min() >= 0 and block.max() < meta.codebook_size:
            continue
        at = np.argwhere((block < 0) | (block >= meta.codebook_size))[0]
        raise ValueError(
            f"{tokens_path(folder, split)}: id {block[tuple(at)]} in image {start + at[0]} is outside the codebook of "
            f"{meta.codebook_size} codes; {AGAIN}"
        )
