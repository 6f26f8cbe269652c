"""Builds the frozen table of VQGAN-LC: features of a pretrained encoder, selected at random or clustered."""

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from datamodules import DATAMODULES
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of, identity
from experiments.pipeline.build import data_module
from experiments.pipeline.codebooks.extraction import features_for, large_codebook, sole_worker
from experiments.pipeline.codebooks.features import FEWER
from experiments.pipeline.codebooks.kmeans import StateFile, load_state, make_table, new_state, split
from experiments.runtime.files import replacing, require_space
from experiments.runtime.ranks import device_of
from experiments.runtime.signals import StopRequest
from lightning_modules.archives import readable
from lightning_modules.checks import home_expanded, require


def codebook_for(experiment: Experiment, data_id: str) -> Tensor:
    """The (K, C) table of the experiment: from `source.path`, else from the cache in output_dir, else built now."""
    config = large_codebook(experiment)
    source, shape = config.source, (experiment.tokenizer.codebook_size, config.feature_dim)
    if source.path:
        return read_codebook(Path(source.path), shape)
    if source.method == "normal":  # B-Table 6, random initialisation
        return torch.randn(shape, generator=torch.Generator().manual_seed(source.seed))
    experiment, data_id = with_source_data(experiment, data_id)
    path = codebook_path(experiment, data_id)
    if not path.is_file():
        build_codebook(experiment, data_id, path)
    return read_codebook(path, shape)


def with_source_data(experiment: Experiment, data_id: str) -> tuple[Experiment, str]:
    """The experiment on the images that its codebook is made of, and their id (B-Table 9)."""
    if not large_codebook(experiment).source.data:
        return experiment, data_id
    experiment = source_data(experiment)
    return experiment, data_module(experiment).data_id


def source_data(experiment: Experiment) -> Experiment:
    """The experiment on the data set that `source.data` names."""
    data = DATAMODULES[large_codebook(experiment).source.data][1](image_size=experiment.data.image_size)
    return replace(experiment, data=data)


def table_id(path: Path) -> str:
    """Names the values of a ready codebook's table. Raises ValueError when the file is not a codebook."""
    table, metadata = open_codebook(path)
    return f"codebook-{metadata.get('sha256') or sha256_of(table)}"


def codebook_path(experiment: Experiment, data_id: str) -> Path:
    source, size = large_codebook(experiment).source, experiment.tokenizer.codebook_size
    images = [data_id, experiment.data.image_size, experiment.data.data_seed]
    name = f"{source.method}_{size}_{digest_of([identity(source), *images])}.safetensors"
    return Path(experiment.runtime.output_dir) / "codebooks" / name


def read_codebook(path: Path, shape: tuple[int, int]) -> Tensor:
    """Raises ValueError that names the file when it is missing, broken, or of another shape."""
    table, metadata = open_codebook(path)
    if tuple(table.shape) != shape:
        raise ValueError(
            f"{path}: holds a codebook of shape {tuple(table.shape)}, but model.codebook_size and "
            f"model.quantizer.feature_dim ask for {shape}"
        )
    is_whole = metadata.get("sha256", sha256_of(table)) == sha256_of(table)  # files of other programs have none
    if not is_whole or not table.is_floating_point() or not torch.isfinite(table).all():
        raise ValueError(f"{path}: a damaged codebook, its values have changed; delete it and build it again")
    return table.float()


def open_codebook(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The table and the metadata beside it. Raises ValueError that names the file when it is missing or broken."""
    path = Path(home_expanded(path))
    require(path.is_file(), f"{path}: no such codebook; build it with `python -m experiments.build_codebook`")
    with readable(path, "; delete it and build it again", "not a codebook file"), safe_open(path, "pt") as file:
        content = file.get_tensor("codebook"), file.metadata() or {}
    return content


def sha256_of(table: Tensor) -> str:
    return hashlib.sha256(table.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def build_codebook(experiment: Experiment, data_id: str, path: Path) -> None:
    """Makes the table and saves it atomically with its metadata; a build that was stopped goes on where it was.

    Raises ValueError, before the long work, when K exceeds the features that the training images give, feature_dim is
    not the encoder's, the disk is too small, or a file is damaged or of another setting.
    """
    config, K, start = large_codebook(experiment), experiment.tokenizer.codebook_size, time.monotonic()
    source, path_exists = config.source, path.is_file()

    def check(shape: tuple[int, int], labels: np.ndarray) -> None:
        dim = config.feature_dim
        require(shape[1] == dim, f"model.quantizer.feature_dim={dim}: the encoder gives {shape[1]}")
        if shape[0] < K:
            raise ValueError(
                f"model.codebook_size={K} exceeds the {shape[0]} features of the training images: use more images "
                "(source.num_images), a larger source.encoder_image_size, or a smaller codebook"
            )
        split(labels, K, source.per_class)

    features = features_for(experiment, data_id, check)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with sole_worker(experiment, path):
        if path.is_file() and not path_exists:  # another worker has made it in the meantime
            return
        what = "the codebook, with two saved states on the way, needs"
        require_space(path.parent, 4 * K * config.feature_dim * 4, what, FEWER)
        work = f"{codebook_path(experiment, data_id).name} {tuple(features.shape)}"
        device = device_of(experiment.runtime)
        state = load_state(partial, work, device) if partial.is_file() else new_state(work, source.seed)
        parts = split(features.labels(), K, source.per_class)
        with StopRequest() as stop:
            keep = StateFile(partial, stop)
            table = make_table(features, parts, source, state, device, keep)
        save_codebook(path, table, identity(source), data_id, len(features), state.statistics())
        keep.remove()
    words = f", {state.passes} passes, {state.reseeded} empty clusters re-seeded" if source.method == "kmeans" else ""
    print(f"codebook: {K:,} of {len(features):,} features by {source.method}{words}, {time.monotonic() - start:.0f} s")


def save_codebook(
    path: Path, table: Tensor, source: dict[str, Any], data_id: str, num_features: int, statistics: dict[str, str]
) -> None:
    """Atomic, with its metadata. Raises OSError when the disk is full."""
    metadata = {"source": json.dumps(source), "data": data_id, "features": str(num_features)} | statistics
    metadata["sha256"] = sha256_of(table)
    content = save({"codebook": table.contiguous()}, metadata)
    with replacing(path, concurrent_writers=True) as file:  # PATH.partial is the state of the clustering
        file.write(content)
