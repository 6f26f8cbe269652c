"""Builds the frozen table of VQGAN-LC: features of a pretrained encoder, selected at random or clustered.

    python -m experiments.build_codebook experiments/vqgan_lc_cifar10.yaml model.codebook_size=16384

Paper B, section 3.2: patch features of the training images, pooled, k-means into K centres; the official code
clusters each class on its own and concatenates. Features are streamed through a memory-mapped file, so neither the
images nor the features need to fit in memory.
"""

import argparse
import contextlib
import hashlib
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.build import build_data, resolve_data
from experiments.config import Experiment, load_experiment
from experiments.errors import user_errors
from lightning_modules.networks.encoders import load_encoder
from lightning_modules.quantizers import CodebookSource, LargeCodebookConfig, nearest_code


def codebook_for(experiment: Experiment, data_id: str) -> Tensor:
    """The (K, C) table of the experiment: from `source.path`, else from the cache in output_dir, else built now."""
    config = large_codebook(experiment)
    shape = (experiment.model.codebook_size, config.feature_dim)
    path = Path(config.source.path or codebook_path(experiment, data_id))
    if not config.source.path and not path.is_file():
        build_codebook(experiment, data_id, path)
    return read_codebook(path, shape)


def large_codebook(experiment: Experiment) -> LargeCodebookConfig:
    """Raises ValueError when the recipe has another quantizer."""
    config = experiment.model.quantizer
    if not isinstance(config, LargeCodebookConfig):
        raise ValueError(f"model.quantizer.name={config.name}: only large_codebook has a codebook file")
    if config.source.method not in ("kmeans", "random"):
        raise ValueError(f"model.quantizer.source.method='{config.source.method}' is none of kmeans, random")
    return config


def codebook_path(experiment: Experiment, data_id: str) -> Path:
    source = asdict(large_codebook(experiment).source)
    size = experiment.model.codebook_size
    name = f"{source['method']}_{size}_{digest(source, *images_id(experiment, data_id))}.safetensors"
    return Path(experiment.runtime.output_dir) / "codebooks" / name


def images_id(experiment: Experiment, data_id: str) -> tuple[object, ...]:
    """Which training images the features are of; `data_seed` picks their subset."""
    return data_id, experiment.data.image_size, experiment.data.data_seed


def digest(*identity: object) -> str:
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def read_codebook(path: Path, shape: tuple[int, int]) -> Tensor:
    """Raises ValueError that names the file when it is missing, broken, or of another shape."""
    try:
        with safe_open(path, "pt") as file:
            table = file.get_tensor("codebook")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such codebook; build it with `python -m experiments.build_codebook`") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a codebook file ({error}); delete it and build it again") from None
    if tuple(table.shape) != shape:
        raise ValueError(
            f"{path}: holds a codebook of shape {tuple(table.shape)}, but model.codebook_size and "
            f"model.quantizer.feature_dim ask for {shape}"
        )
    return table.float()


def build_codebook(experiment: Experiment, data_id: str, path: Path) -> None:
    """Makes the table and saves it atomically with its metadata; features are extracted once and kept.

    Raises ValueError when K exceeds the features that the training images give.
    """
    config, codebook_size = large_codebook(experiment), experiment.model.codebook_size
    source, start = config.source, time.time()
    features, labels = features_for(experiment, data_id)
    if features.shape[1] != config.feature_dim:
        raise ValueError(f"model.quantizer.feature_dim={config.feature_dim}: the encoder gives {features.shape[1]}")
    if codebook_size > len(features):
        raise ValueError(
            f"model.codebook_size={codebook_size} exceeds the {len(features)} features of the training images: use "
            "more images (source.num_images), a larger source.encoder_image_size, or a smaller codebook"
        )
    generator = torch.Generator().manual_seed(source.seed)
    parts = split(labels, codebook_size, source.per_class)
    table = torch.cat([select(features[rows], size, source, generator) for rows, size in parts])
    metadata = {"source": json.dumps(asdict(source)), "data": data_id, "features": str(len(features))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "codebook.safetensors"
        save_file({"codebook": table.contiguous()}, temporary, metadata=metadata)
        temporary.replace(path)
    print(f"codebook: {codebook_size:,} of {len(features):,} features by {source.method}, {time.time() - start:.0f} s")


def features_for(experiment: Experiment, data_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, C) of the training images, memory-mapped, and the label of each (N,); extracted if not kept yet."""
    source = large_codebook(experiment).source
    identity = [source.encoder, source.encoder_image_size, source.stage, source.pool, source.num_images]
    name = f"features_{digest(identity, *images_id(experiment, data_id))}"
    folder = Path(experiment.runtime.output_dir) / "codebooks" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            extract_features(experiment, Path(temporary))
            with contextlib.suppress(OSError):  # another worker was first
                Path(temporary).rename(folder)
            Path(temporary).mkdir(exist_ok=True)  # for the context to remove
    return np.load(folder / "features.npy", mmap_mode="r"), np.load(folder / "labels.npy")


@torch.no_grad()
def extract_features(experiment: Experiment, folder: Path) -> None:
    """Streams the training images, not augmented, through the encoder into folder/features.npy and labels.npy.

    `source.num_images` is a class-balanced subset of the whole training set, whatever data.train_size is.
    """
    source = large_codebook(experiment).source
    encoder = load_encoder(source.encoder, source.encoder_image_size)
    size = source.num_images or type(experiment.data)().train_size  # None = all; shapes has no end
    plain: dict[str, Any] = {"flip": False, "random_crop": False, "train_size": size, "batch_size": 64}
    known = {key: value for key, value in plain.items() if hasattr(experiment.data, key)}
    data = build_data(replace(experiment, data=replace(experiment.data, **known)))
    out: np.memmap | None = None
    labels, rows, images = [], 0, len(data.train_set)  # type: ignore[arg-type]
    for batch in data.ordered_train_dataloader():
        maps = encoder.stages(batch["image"], source.stage)[-1].permute(0, 2, 3, 1) if source.stage else None
        maps = encoder.features(batch["image"]) if maps is None else maps  # (B, h, w, C)
        if source.pool > 1:
            maps = F.avg_pool2d(maps.permute(0, 3, 1, 2), source.pool).permute(0, 2, 3, 1)
        per_image = maps.shape[1] * maps.shape[2]
        if out is None:
            shape = (images * per_image, maps.shape[3])
            out = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, shape)
        out[rows : rows + len(maps) * per_image] = maps.flatten(0, 2).float().numpy()
        labels.append(batch["label"].repeat_interleave(per_image).numpy())
        rows += len(maps) * per_image
    assert out is not None
    out.flush()
    np.save(folder / "labels.npy", np.concatenate(labels))


def split(labels: np.ndarray, size: int, per_class: bool) -> list[tuple[np.ndarray, int]]:
    """Rows and number of codes of each part: one part, or one a class, sizes differing by at most one."""
    classes = np.unique(labels) if per_class else np.array([])
    if not 1 < len(classes) <= size:
        return [(np.arange(len(labels)), size)]
    sizes = [size // len(classes) + (i < size % len(classes)) for i in range(len(classes))]
    parts = [(np.flatnonzero(labels == c), n) for c, n in zip(classes, sizes, strict=True)]
    for c, (rows, n) in zip(classes, parts, strict=True):
        if n > len(rows):
            raise ValueError(
                f"class {c} has {len(rows)} features, fewer than its {n} codes: set source.per_class=false"
            )
    return parts


def select(features: np.ndarray, size: int, source: CodebookSource, generator: torch.Generator) -> Tensor:
    """`size` rows (or cluster centres) of features (N, C)."""
    z = torch.from_numpy(np.ascontiguousarray(features))
    centres = z[torch.randperm(len(z), generator=generator)[:size]]  # (size, C)
    if source.method == "random":
        return centres
    for _ in range(source.iterations):
        centres = lloyd_step(z, centres, generator)
    return centres


def lloyd_step(z: Tensor, centres: Tensor, generator: torch.Generator, chunk: int = 16384) -> Tensor:
    """One k-means step on z (N, C); an empty cluster is re-seeded with a random feature."""
    sums, counts = torch.zeros_like(centres), torch.zeros(len(centres))
    for part in z.split(chunk):
        indices = nearest_code(part, centres)
        sums.index_add_(0, indices, part)
        counts += torch.bincount(indices, minlength=len(centres))
    empty = counts == 0
    sums[empty] = z[torch.randint(len(z), (int(empty.sum()),), generator=generator)]
    return sums / counts.clamp_min(1).unsqueeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.build_codebook",
        description="Build the frozen codebook of a VQGAN-LC recipe; training does it by itself when it is missing.",
    )
    parser.add_argument("file", help="recipe with a large_codebook quantizer, e.g. experiments/vqgan_lc_cifar10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.quantizer.source.method=random")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | imagefolder (default: auto)")
    parser.add_argument("--out", help="file to write (default: OUTPUT_DIR/codebooks/NAME.safetensors)")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        experiment = resolve_data(load_experiment(arguments.file, arguments.overrides), arguments.data)
        large_codebook(experiment)
        data_id = build_data(experiment).data_id
        path = Path(arguments.out or codebook_path(experiment, data_id))
        build_codebook(experiment, data_id, path)
        print(path)


if __name__ == "__main__":
    main()
