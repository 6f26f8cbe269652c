"""The files of a folder of tokens or latents, which `experiments.tokenize` writes and `TokensDataModule` or
`LatentsDataModule` reads.

    meta.json                   `TokenMeta` or `LatentMeta`; written last: a folder without it is not finished
    train.bin, val.bin          little-endian; tokens: (N, V, T) int32: image, view, token in raster order;
                                latents: (N, V, d, h, w) float32 or float16, the encoder's un-quantized output
    train_labels.npy, val_labels.npy   (N,) int64

N images of a split in the image datamodule's order, V views of each (the first is the plain image), T = h * w tokens,
d dimensions of a latent.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from math import prod
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

FORMAT = 1
SPLITS = ("train", "val")
DTYPE = np.dtype("<i4")  # 100,000 codes do not fit uint16
CHECKED = 2**22  # numbers checked at a time: 16 MiB
STORED = ("float32", "float16")  # kinds of kept latents
AGAIN = "delete the folder and make it again with `python -m experiments.tokenize`"


@dataclass(kw_only=True)
class EncodedMeta(ABC):
    """Which tokenizer encoded which images, and what the files must look like."""

    kind: ClassVar[str]  # "tokens" or "latents"
    served: ClassVar[type]  # a number in a batch
    tokenizer_digest: str  # experiment's digest and hash of the weights
    model: str
    precision: str  # the encoder's: 32-true | bf16-mixed
    grid_size: list[int]  # h, w
    data_id: str  # of the images
    data: dict[str, Any]  # the images' options: size, subset, seed, ...
    num_classes: int  # labels are in [0, num_classes)
    num_images: dict[str, int]  # by split
    views: dict[str, list[str]]  # by split: "plain", "mirrored", "crop"
    labels_sha256: dict[str, str]  # by split: of the plain int64 numbers
    sha256: dict[str, str] = field(default_factory=dict)  # by file; empty until all are finished
    format: int = FORMAT

    @property
    @abstractmethod
    def dtype(self) -> np.dtype: ...

    @property
    @abstractmethod
    def view_shape(self) -> tuple[int, ...]:
        """Of what one view of an image becomes."""

    @abstractmethod
    def is_own_sound(self) -> bool:
        """Whether the entries that only this kind has are what they should be."""

    @abstractmethod
    def fault(self, block: np.ndarray) -> tuple[int, str] | None:
        """The first image of a block (n, V, ...) whose values cannot be, and what is wrong with it."""

    def shape(self, split: str) -> tuple[int, ...]:
        """(N, V, ...) of a split's array."""
        return self.num_images[split], len(self.views[split]), *self.view_shape

    def row_bytes(self, split: str) -> int:
        """Bytes of what one image becomes, all views."""
        return prod(self.shape(split)[1:]) * self.dtype.itemsize


@dataclass(kw_only=True)
class TokenMeta(EncodedMeta):
    """Token ids, int32."""

    kind = "tokens"
    served = np.int64
    codebook_size: int  # ids are in [0, codebook_size)

    @property
    def dtype(self) -> np.dtype:
        return DTYPE

    @property
    def view_shape(self) -> tuple[int, ...]:
        return (prod(self.grid_size),)

    def is_own_sound(self) -> bool:
        return type(self.codebook_size) is int and self.codebook_size > 0

    def fault(self, block: np.ndarray) -> tuple[int, str] | None:
        if block.min() >= 0 and block.max() < self.codebook_size:
            return None
        at = np.argwhere((block < 0) | (block >= self.codebook_size))[0]
        return at[0], f"id {block[tuple(at)]} in image {{}} is outside the codebook of {self.codebook_size} codes"


@dataclass(kw_only=True)
class LatentMeta(EncodedMeta):
    """Latents before quantization."""

    kind = "latents"
    served = np.float32
    code_dim: int  # d
    stored: str  # of STORED

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.stored).newbyteorder("<")

    @property
    def view_shape(self) -> tuple[int, ...]:
        return self.code_dim, *self.grid_size

    def is_own_sound(self) -> bool:
        return type(self.code_dim) is int and self.code_dim > 0 and self.stored in STORED

    def fault(self, block: np.ndarray) -> tuple[int, str] | None:
        if (is_finite := np.isfinite(block)).all():
            return None
        return np.argwhere(~is_finite)[0][0], "a latent of image {} is not finite"


Meta = TypeVar("Meta", bound=EncodedMeta)


def values_path(folder: Path, split: str) -> Path:
    return folder / f"{split}.bin"


def labels_path(folder: Path, split: str) -> Path:
    return folder / f"{split}_labels.npy"


def read_meta(folder: Path, cls: type[Meta] = TokenMeta) -> Meta:  # type: ignore[assignment]
    """Raises ValueError that names the folder or file: not there, not finished, not readable, of another format."""
    path = folder / "meta.json"
    if not path.is_file():
        state = f"its {cls.kind} are half written" if (folder / "state.json").is_file() else f"there are no {cls.kind}"
        raise ValueError(f"{folder}: no meta.json, {state}: let `python -m experiments.tokenize` finish them first")
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not readable ({error}); {AGAIN}") from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise ValueError(f"{path}: format version {found}, this version reads {FORMAT}; {AGAIN}")
    if differ := {entry.name for entry in fields(cls)} ^ set(content):
        raise ValueError(f"{path}: entries missing or unknown: {', '.join(sorted(differ))}; {AGAIN}")
    if not is_sound(meta := cls(**content)):
        raise ValueError(f"{path}: damaged, an entry is not what it should be; {AGAIN}")
    return meta


def is_sound(meta: EncodedMeta) -> bool:
    """Whether sizes are whole numbers above 0 and every other entry has its type."""
    try:
        sizes = [meta.num_classes, *meta.grid_size]
        sizes += [size for split in SPLITS for size in (meta.num_images[split], len(meta.views[split]))]
        int(meta.data["data_seed"])
    except (TypeError, KeyError, ValueError):
        return False
    words = (meta.tokenizer_digest, meta.model, meta.precision, meta.data_id)
    tables = (meta.sha256, meta.labels_sha256, meta.data)
    is_kind = all(isinstance(word, str) for word in words) and all(isinstance(table, dict) for table in tables)
    is_kind = is_kind and len(meta.grid_size) == 2 and all(type(size) is int and size > 0 for size in sizes)
    return is_kind and meta.is_own_sound()


def open_values(folder: Path, meta: EncodedMeta, split: str) -> np.memmap:
    """(N, V, ...), read-only, read from disk as it is used."""
    return np.memmap(values_path(folder, split), meta.dtype, "r", shape=meta.shape(split))


def read_labels(folder: Path, meta: EncodedMeta, split: str) -> np.ndarray:
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


def check_files(folder: Path, meta: EncodedMeta) -> None:
    """Sizes and labels of both splits first, then every value and, where they are kept, the checksums.

    Raises ValueError that names the file at fault.
    """
    for split in SPLITS:
        path = values_path(folder, split)
        if not path.is_file():
            raise ValueError(f"{path}: missing; {AGAIN}")
        expected = prod(meta.shape(split)) * meta.dtype.itemsize
        if (size := path.stat().st_size) != expected:
            raise ValueError(
                f"{path}: {size:,} bytes, but meta.json asks for {expected:,}: it is "
                f"{'cut off' if size < expected else 'too long'}; {AGAIN}"
            )
        read_labels(folder, meta, split)
    for split in SPLITS:
        check_values(folder, meta, split)
        for path in (values_path(folder, split), labels_path(folder, split)):
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if meta.sha256.get(path.name, found) != found:
                raise ValueError(f"{path}: damaged, its checksum is not that of meta.json; {AGAIN}")


def check_values(folder: Path, meta: EncodedMeta, split: str) -> None:
    """Raises ValueError that names the first image with a value that cannot be. Reads the file once."""
    values = open_values(folder, meta, split)
    images = max(1, CHECKED // prod(values.shape[1:]))
    for start in range(0, len(values), images):
        if fault := meta.fault(values[start : start + images]):
            image, message = fault
            raise ValueError(f"{values_path(folder, split)}: {message.format(start + image)}; {AGAIN}")
