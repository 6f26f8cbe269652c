"""Patch features of the training images by a pretrained encoder: made once, kept on disk, continued after a stop.

A folder of features holds

    features.npy    (N, C) float32, image by image, the patches of each row by row
    labels.npy      (N,) int64, the class of each feature's image
    metadata.json   what they are of, and how many images are done

While it is made it is called NAME.partial; a killed build continues after the images that metadata.json counts.
float32 and not float16, which would halve the disk: codes stay the encoder's very features, and the published
codebooks what they are.

Shapes: N features of C channels in all, B images a batch, h w the pooled feature map.
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules import DATAMODULES, ImageDataModule
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of
from experiments.pipeline.build import build_data, plain
from experiments.pipeline.codebooks.features import FEWER, Features
from experiments.runtime.appending import append
from experiments.runtime.files import locked, require_space, write_json
from experiments.runtime.precision import full_float32
from experiments.runtime.ranks import device_of
from lightning_modules.archives import readable
from lightning_modules.networks.encoders import PretrainedEncoder, load_encoder
from lightning_modules.quantizers import CodebookSource, LargeCodebookConfig

Check = Callable[[tuple[int, int], np.ndarray], None]


def large_codebook(experiment: Experiment) -> LargeCodebookConfig:
    """The quantizer's options. Raises ValueError for another quantizer, or an unknown data set for its codebook."""
    config = experiment.tokenizer.quantizer
    if not isinstance(config, LargeCodebookConfig):
        raise ValueError(f"model.quantizer.name={config.name}: only large_codebook has a codebook file")
    if (name := config.source.data) not in ("", *DATAMODULES):
        raise ValueError(f"model.quantizer.source.data='{name}' is none of {', '.join(DATAMODULES)}")
    return config


def setting_of(experiment: Experiment, data_id: str) -> dict[str, Any]:
    """What the features are of; `data_seed` picks the subset of the training images."""
    data, source = experiment.data, asdict(large_codebook(experiment).source)
    options = {key: source[key] for key in ("encoder", "encoder_image_size", "stage", "pool", "num_images")}
    return {"data_id": data_id, "image_size": data.image_size, "data_seed": data.data_seed, **options}


def features_folder(experiment: Experiment, data_id: str) -> Path:
    name = f"features_{digest_of(setting_of(experiment, data_id))}"
    return Path(experiment.runtime.output_dir) / "codebooks" / name


def sole_worker(experiment: Experiment, path: Path) -> AbstractContextManager[None]:
    """Within this context one worker makes `path`; the others wait until it is there."""
    folder = Path(experiment.runtime.output_dir) / "codebooks" / ".locks"
    return locked(folder / path.name, "is making it")


def plain_data(experiment: Experiment) -> ImageDataModule:
    """The training images as they are, not augmented.

    `source.num_images` is a class-balanced subset of the whole training set, whatever data.train_size is.
    """
    size = large_codebook(experiment).source.num_images or type(experiment.data)().train_size
    return build_data(plain(experiment, train_size=size, batch_size=64))  # None = all; shapes has no end


def features_for(experiment: Experiment, data_id: str, check: Check = lambda *_: None) -> Features:
    """The features of the training images; extracted if they are not kept yet.

    `check(shape, labels)` gets (N, C) and labels (N,) before any long work, to raise what it finds wrong.
    Raises ValueError when the folder is damaged or of other data, or the disk is too small.
    """
    folder, data = features_folder(experiment, data_id), plain_data(experiment)
    labels: np.ndarray = data.train_set.labels.numpy()  # type: ignore[union-attr]  # (images,)
    setting = setting_of(experiment, data_id) | {"images": len(labels), "dtype": "float32"}
    if not folder.is_dir():
        encode, size = feature_maps(experiment), data.config.image_size
        _, h, w, C = encode(torch.zeros(1, 3, size, size)).shape
        check((len(labels) * h * w, C), labels.repeat(h * w))
        with sole_worker(experiment, folder):
            if not folder.is_dir():
                partial = folder.with_name(f"{folder.name}.partial")
                partial.mkdir(exist_ok=True)
                whole = setting | {"features": len(labels) * h * w, "dims": C}
                extract(partial, whole, labels, data.ordered_train_dataloader, encode)
                partial.rename(folder)
    features = Features(folder)
    read_metadata(folder, setting | {"features": len(features), "dims": features.shape[1]})
    labels = labels.repeat(len(features) // len(labels))  # (N,)
    if not np.array_equal(features.labels(), labels):
        raise ValueError(f"{folder}: of other images than the training set's; delete it or set runtime.output_dir")
    check(features.shape, labels)
    return features


def feature_maps(experiment: Experiment) -> Callable[[Tensor], Tensor]:
    """`patch_features` of images (B, 3, H, W) by the encoder of the recipe, on its device."""
    source, device = large_codebook(experiment).source, device_of(experiment.runtime)
    encoder = load_encoder(source.encoder, source.encoder_image_size).to(device)
    return lambda images: patch_features(encoder, images.to(device), source)


@torch.no_grad()
@full_float32()
def patch_features(encoder: PretrainedEncoder, images: Tensor, source: CodebookSource) -> Tensor:
    """Pooled features (B, h, w, C) of images (B, 3, H, W). Raises ValueError for a stage or pool that is not there."""
    if source.stage:
        stages = encoder.stages(images, source.stage)
        if len(stages) != source.stage:
            raise ValueError(f"model.quantizer.source.stage={source.stage}: {encoder.name} has {len(stages)} stages")
        maps = stages[-1].permute(0, 2, 3, 1)
    else:
        maps = encoder.features(images)  # (B, h, w, C)
    if source.pool > min(grid := tuple(maps.shape[1:3])):
        raise ValueError(f"model.quantizer.source.pool={source.pool}: the map has only {grid} patches")
    if source.pool > 1:
        maps = F.avg_pool2d(maps.permute(0, 3, 1, 2), source.pool).permute(0, 2, 3, 1)
    return maps.float()


def read_metadata(folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError when it is not readable, or of another setting than `setting`."""
    path = folder / "metadata.json"
    with readable(path, f"; delete {folder} and it is made again"):
        metadata = json.loads(path.read_text())
        differ = [key for key in setting if metadata.get(key) != setting[key]]
        is_sound = 0 <= metadata["images_done"] <= metadata["images"]
    if differ or not is_sound:
        key = differ[0] if differ else "images_done"
        raise ValueError(
            f"{folder}: made with {key}={metadata.get(key)}, here it is {setting.get(key)}; "
            "delete the folder or set runtime.output_dir"
        )
    return metadata


def extract(
    folder: Path, setting: dict[str, Any], labels: np.ndarray, loader: Callable[[int], Any], encode: Callable
) -> None:
    """Streams `loader(first image)` through `encode` into `folder`, from where it was stopped if it was.

    Equal to the last bit, stopped or not, as long as data.val_batch_size stays: progress is counted in whole batches.
    """
    path, metadata, C = folder / "features.npy", setting | {"images_done": 0}, setting["dims"]
    if (folder / "metadata.json").is_file():
        metadata = read_metadata(folder, setting)
    images, done = setting["images"], metadata["images_done"]
    row_bytes = setting["features"] // images * C * 4  # of an image
    needed = (images - done) * row_bytes + (0 if done else setting["features"] * 8)
    require_space(folder.parent, needed, f"extracting features of {images:,} images needs", FEWER)
    if not done:
        np.save(folder / "labels.npy", labels.repeat(setting["features"] // images))
        with open(path, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (setting["features"], C)}
            np.lib.format.write_array_header_1_0(file, header)
        metadata["offset"] = path.stat().st_size
    end = metadata["offset"] + done * row_bytes
    if not path.is_file() or path.stat().st_size < end:
        raise ValueError(f"{path}: cut off, {done} images take {end} bytes; delete {folder} and it is made again")

    def save(number: int) -> None:
        write_json(folder / "metadata.json", metadata | {"images_done": number})

    rows = (encode(batch["image"]).cpu().numpy() for batch in loader(done))  # each (B, h, w, C)
    append(path, end, rows, done, images, save)
