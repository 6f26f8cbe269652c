"""The views of images that are encoded once, and the job of encoding them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor

from datamodules.image_folder import ImageFolderConfig, ImageFolderDataModule
from datamodules.views import ViewDataset
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import build_data, plain, resolve_data, restore_tokenizer
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.token_writer import Job, make_job
from experiments.runtime.ranks import check_accelerator


def view_names(num_views: int | None, flip: bool) -> list[str]:
    """The plain image, with `flip` the mirrored one, then crops. Raises ValueError for fewer views than these."""
    fixed = ["plain", "mirrored"] if flip else ["plain"]
    num_views = len(fixed) if num_views is None else num_views
    if num_views < len(fixed):
        raise ValueError(f"--views {num_views}: must be at least {len(fixed)}" + (" with --flip" if flip else ""))
    return fixed + ["crop"] * (num_views - len(fixed))


def plain_experiment(experiment: Experiment, data: str, given: dict[str, Any]) -> Experiment:
    """The experiment on whole images, without augmentation, of the data set `data`; `given` are the user's options."""
    experiment = resolve_data(experiment, data)
    whole = type(experiment.data)()
    return plain(experiment, **({"train_size": whole.train_size, "val_size": whole.val_size} | given))


def crop_transform(experiment: Experiment, flip: bool) -> Callable[..., Tensor]:
    """Training's random crop of image files. Raises ValueError where images are not cropped."""
    config = experiment.data
    if not isinstance(config, ImageFolderConfig) or config.resize != "shorter":
        raise ValueError(
            f"--views: random crops are made of image folders with data.resize=shorter, not of {config.name}: "
            f"there are {1 + flip} views of its images" + ("" if flip else ", or 2 with --flip")
        )
    config = replace(config, random_crop=True, flip=flip)
    return ImageFolderDataModule(config, experiment.runtime.data_dir).transform(train=True)


def prepare(arguments: argparse.Namespace) -> Job:
    """Restores the tokenizer and sets up the images. Raises ValueError or FileNotFoundError before any long work."""
    views, batch_size = view_names(arguments.views, arguments.flip), arguments.batch_size
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: must be at least 1")
    overrides = from_dotlist(arguments.overrides)
    if other := set(overrides) - {"data", "runtime"}:
        raise ValueError(f"{min(other)}: the tokenizer is trained, only data.* and runtime.* can be changed")
    where = {"runtime": {"data_dir": arguments.data_dir, "output_dir": arguments.output_dir}}
    experiment, module = restore_tokenizer(arguments.checkpoint, merge(where, overrides))
    check_accelerator(experiment.runtime)
    experiment = plain_experiment(experiment, arguments.data, chosen(experiment, overrides.get("data", {})))
    crop = crop_transform(experiment, arguments.flip) if "crop" in views else None
    data = build_data(experiment)
    assert data.train_set is not None and data.val_set is not None
    seed = experiment.data.data_seed
    sources = {"train": ViewDataset(data.train_set, views, crop, seed), "val": ViewDataset(data.val_set, ["plain"])}
    module.to(L.Fabric(accelerator=experiment.runtime.accelerator, devices=1).device)
    return make_job(experiment, module, tokenizer_digest(arguments.checkpoint), data, sources, batch_size)


def chosen(experiment: Experiment, overrides: dict[str, Any]) -> dict[str, Any]:
    """The sizes that the user has given, checked by the schema."""
    return {key: getattr(experiment.data, key) for key in ("train_size", "val_size") if key in overrides}
