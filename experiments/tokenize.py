"""Encodes a data set once with a trained tokenizer; stage 2 then reads the token ids and never runs the encoder.

    python -m experiments.tokenize runs/experiments/RUN/checkpoints/final.ckpt --data-dir data [key=value ...]

The same command continues where it was stopped, with the same result (given the same --batch-size), and does nothing
when all is finished. Validation images are encoded plain; the views of training images are fixed here, once.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from torch import Tensor

from datamodules.image_folder import ImageFolderConfig, ImageFolderDataModule
from datamodules.token_files import SPLITS
from datamodules.views import ViewDataset
from experiments.build import build_data, resolve_data, restore_tokenizer
from experiments.errors import user_errors
from experiments.runtime.ranks import check_accelerator
from experiments.schema import Experiment
from experiments.stage2.encode import tokenizer_digest
from experiments.stage2.token_writer import Job, make_job, write_tokens
from experiments.values import from_dotlist, merge


def view_names(num_views: int | None, flip: bool) -> list[str]:
    """The plain image, with `flip` the mirrored one, then crops. Raises ValueError for fewer views than these."""
    fixed = ["plain", "mirrored"] if flip else ["plain"]
    num_views = len(fixed) if num_views is None else num_views
    if num_views < len(fixed):
        raise ValueError(f"--views {num_views}: must be at least {len(fixed)}" + (" with --flip" if flip else ""))
    return fixed + ["crop"] * (num_views - len(fixed))


def plain_experiment(experiment: Experiment, data: str, given: dict[str, Any]) -> Experiment:
    """The experiment with whole, not augmented images of the data set `data`; `given` are the user's data options."""
    experiment = resolve_data(experiment, data)
    config = experiment.data
    plain: dict[str, Any] = {"flip": False, "random_crop": False, "train_size": type(config)().train_size}
    plain |= {"val_size": type(config)().val_size} | given
    known = {key: value for key, value in plain.items() if hasattr(config, key)}
    return replace(experiment, data=replace(config, **known))


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


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.tokenize",
        description="Encode a data set once with a trained tokenizer, for stage 2. The same command continues.",
        epilog="Keys may change the data (data.train_size=1000; default: the whole set) or where it runs "
        "(runtime.accelerator=cpu, runtime.num_workers=8).",
    )
    parser.add_argument("checkpoint", help="a final.ckpt of a run")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | imagefolder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data (default: data)")
    parser.add_argument("--output-dir", default="runs", help="holds the token folders (default: runs)")
    parser.add_argument("--views", type=int, help="views of a training image; those beyond the fixed are random crops")
    parser.add_argument("--flip", action="store_true", help="the second view is the mirrored image")
    parser.add_argument("--out", help="folder to write (default: OUTPUT_DIR/tokens/DIGEST)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at a time, each in all its views")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        job = prepare(arguments)
        folder = Path(arguments.out or Path(arguments.output_dir) / "tokens" / job.name)
        sizes = " and ".join(f"{job.meta.shape(split)} {split}" for split in SPLITS)
        print(f"tokens of {job.meta.data_id} (images, views, tokens): {sizes}", flush=True)
        if not write_tokens(job, folder):
            print("they are finished, nothing was done")
        print(folder)


if __name__ == "__main__":
    main()
