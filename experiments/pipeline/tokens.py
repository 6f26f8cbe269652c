"""The views of images that are encoded once, and the job of encoding them."""

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
from torch import Tensor

from datamodules import ImageDataModule
from datamodules.image_folder import ImageFolderConfig, ImageFolderDataModule
from datamodules.views import ViewDataset
from experiments.config.experiment import Experiment
from experiments.config.values import from_dotlist
from experiments.pipeline.build import build_data, plain, resolve_data, restore_tokenizer
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.token_writer import Job, make_job
from experiments.pipeline.upstream import restore_for
from experiments.runtime.ranks import check_accelerator
from lightning_modules.checks import require


def view_names(num_views: int | None, flip: bool) -> list[str]:
    """The plain image, with `flip` the mirrored one, then crops. Raises ValueError for fewer views than these."""
    fixed = ["plain", "mirrored"] if flip else ["plain"]
    num_views = len(fixed) if num_views is None else num_views
    least = f"{len(fixed)} with --flip" if flip else f"{len(fixed)}"
    require(num_views >= len(fixed), f"--views {num_views}: must be at least {least}")
    return fixed + ["crop"] * (num_views - len(fixed))


def views_of(
    data: ImageDataModule, names: list[str], crop: Callable[..., Tensor] | None = None
) -> dict[str, ViewDataset]:
    """Both splits, those of training in the views `names`, which are fixed by the seed of the data."""
    assert data.train_set is not None and data.val_set is not None
    train = ViewDataset(data.train_set, names, crop, data.config.data_seed)
    return {"train": train, "val": ViewDataset(data.val_set, ["plain"])}


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
    path, views, batch_size = arguments.checkpoint, view_names(arguments.views, arguments.flip), arguments.batch_size
    require(batch_size >= 1, f"--batch-size {batch_size}: must be at least 1")
    experiment, module = restore_for(arguments, "the tokenizer", restore_tokenizer)
    experiment.tokenizer.check_tokens()
    check_accelerator(experiment.runtime)
    given = from_dotlist(arguments.overrides).get("data", {})
    sizes = {key: getattr(experiment.data, key) for key in ("train_size", "val_size") if key in given}
    experiment = plain_experiment(experiment, arguments.data, sizes)
    crop = crop_transform(experiment, arguments.flip) if "crop" in views else None
    data = build_data(experiment)
    module.to(L.Fabric(accelerator=experiment.runtime.accelerator, devices=1).device)
    sources = views_of(data, views, crop)
    return make_job(experiment, module, tokenizer_digest(path), data, sources, batch_size, arguments.latents)
