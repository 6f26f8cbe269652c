"""From an `Experiment` to its data module and LightningModule, and from a checkpoint back to them."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules import DATAMODULES, ImageDataModule
from datamodules.cifar10 import find_cifar10
from experiments.config.compose import parse
from experiments.config.experiment import MODULES, Experiment
from experiments.config.values import merge
from experiments.runtime.errors import is_main
from lightning_modules.base import Setting
from lightning_modules.checks import hint
from lightning_modules.frozen import freeze
from lightning_modules.pretrained import fill, load_checkpoint, sizes_of
from lightning_modules.tokenizer import Tokenizer


def build_data(experiment: Experiment) -> ImageDataModule:
    """The data module, prepared and set up, so that it has its `data_id`. Raises ValueError or FileNotFoundError."""
    data = data_module(experiment)
    data.prepare_data()
    data.setup("fit")
    return data


def first_images(data: ImageDataModule, number: int = 8) -> Tensor:
    """(B, 3, H, W) in [-1, 1], the first validation images of data that is set up."""
    images: Any = data.val_set
    return torch.stack([images[index]["image"] for index in range(min(number, len(images)))])


def data_module(experiment: Experiment) -> ImageDataModule:
    """The data module, not yet set up."""
    runtime = experiment.runtime
    cls = DATAMODULES[experiment.data.name][0]
    return cls(experiment.data, runtime.data_dir, num_workers=runtime.num_workers, seed=experiment.seed)


def plain(experiment: Experiment, **changes: Any) -> Experiment:
    """The experiment on its images without augmentation, with `changes` to those data options that its data has."""
    wanted: dict[str, Any] = {"flip": False, "random_crop": False, "augment": ""} | changes
    known = {key: value for key, value in wanted.items() if hasattr(experiment.data, key)}
    return replace(experiment, data=replace(experiment.data, **known))


def build_model(experiment: Experiment, setting: Setting | None = None) -> Any:
    """The untrained module; without `setting` one that stands on no other model."""
    cls = MODULES[experiment.model.name][0]
    return cls.build(experiment.model, setting or Setting(experiment.data.image_size))


def resolve_data(experiment: Experiment, data: str) -> Experiment:
    """Applies the word DATA=auto|cifar10|shapes|image_folder to a recipe.

    auto keeps the recipe's own data set; where that is CIFAR-10 and it is neither in `data_dir` nor to be downloaded,
    it falls back, loudly, to the rendered shapes. The others replace the data set; sizes and batch stay, and what is
    encoded once stays that of whole images. What the experiment stands on gets the same.
    """
    if experiment.upstream is not None:
        upstream = replace(experiment.upstream, runtime=experiment.runtime)
        experiment = replace(experiment, upstream=resolve_data(upstream, data))
    if data not in (known := ("auto", *DATAMODULES)):
        raise ValueError(f"DATA={data} is none of {', '.join(known)}{hint(data, known)}")
    name = experiment.data.name if data == "auto" else data
    if data == "auto" and name == "cifar10" and find_cifar10(experiment.runtime.data_dir) is None:
        try:
            build_data(experiment)  # downloads
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            if is_main():
                print(f"\n!!! NO CIFAR-10: {reason}\n!!! DATA=auto trains on rendered shapes instead.\n", flush=True)
            name = "shapes"
    if name == experiment.data.name:
        return experiment
    config = DATAMODULES[name][1]()
    values = {key: getattr(experiment.data, key, None) for key in vars(config)}
    shared = {key: value for key, value in values.items() if value is not None}  # "all images" means another number
    if experiment.is_encoded_once and hasattr(config, "random_crop"):
        shared["random_crop"] = False
    return replace(experiment, data=replace(config, **(shared | {"name": name})))


def experiment_of(model: str | Path) -> Experiment:
    """With which MODEL was trained. Raises ValueError."""
    return parse(load_checkpoint(model)["experiment"], str(model))


def restore(path: str | Path, overrides: dict[str, Any] | None = None, for_use: bool = False) -> tuple[Experiment, Any]:
    """The experiment and trained module of a checkpoint; `overrides` may change data, metrics, sampling or runtime.

    `for_use`: frozen, without what only training and evaluation need. A module on top of another comes without it, see
    `prepare.lend`. Raises ValueError when the file is no checkpoint of this suite or its weights do not fit its
    configuration.
    """
    checkpoint = load_checkpoint(path)
    experiment = parse(merge(checkpoint["experiment"], overrides or {}), str(path))
    if not MODULES[experiment.model.name][0].is_restorable:
        raise ValueError(
            f"{path}: of model '{experiment.model.name}', which cannot be restored without the model below it: its "
            "metrics are in its record, and `python -m experiments.train` makes them again"
        )
    sizes = {"image_size": experiment.data.image_size} | sizes_of(checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = build_model(experiment, Setting(**sizes, for_use=for_use))
    fill(module, checkpoint, path)
    return experiment, freeze(module) if for_use else module


def restore_tokenizer(path: str | Path, overrides: dict[str, Any] | None = None) -> tuple[Experiment, Tokenizer]:
    """`restore`, for use, of a checkpoint that must be a tokenizer's. Raises ValueError for another model."""
    experiment, module = restore(path, overrides, for_use=True)
    if not isinstance(module, Tokenizer):
        raise ValueError(f"{path}: holds a '{experiment.model.name}', not a tokenizer")
    return experiment, module
