"""What a run needs before it can start: its data and its module, and for a downstream run the model it stands on.

Only what is missing is made: the upstream model is trained when it has no checkpoint, its tokens are made once.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from filelock import FileLock

from datamodules import ImageDataModule, TokensConfig, TokensDataModule
from datamodules.views import ViewDataset
from experiments.build import build_data, build_model, restore
from experiments.build_codebook import codebook_for
from experiments.config import Downstream, Experiment
from experiments.encode import EncodedImages, tokenizer_digest
from experiments.token_writer import make_job, write_tokens
from experiments.tokenize import view_names
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM

Train = Callable[[Experiment, str, Path, bool], Any]  # experiments.train.train


class Prepared(NamedTuple):
    """What is trained, on what. `images` are those that metrics compare with."""

    module: Any
    data: L.LightningDataModule
    images: ImageDataModule


def run_dir(experiment: Experiment, name: str) -> Path:
    return Path(experiment.runtime.output_dir) / "experiments" / f"{name}_{experiment.digest()}"


def prepare(experiment: Experiment, train: Train) -> Prepared:
    """Data and module of the experiment; `train` trains a model that it stands on. Raises ValueError or OSError."""
    if isinstance(experiment, Downstream):
        return prepare_vim(experiment, train)
    images = build_data(experiment)
    module = build_model(experiment)
    if isinstance(module.quantizer, LargeCodebook):
        module.quantizer.fill(codebook_for(experiment, images.data_id))
    return Prepared(module, images, images)


def upstream_checkpoint(experiment: Downstream, train: Train) -> Path:
    """The final checkpoint of the upstream model, trained now if it is not there; one process at a time."""
    upstream = replace(experiment.upstream, runtime=experiment.runtime)
    folder = run_dir(upstream, experiment.upstream_name)
    path = folder / "checkpoints" / "final.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".upstream.lock"):
        if not path.is_file():
            print(f"{experiment.recipe} is trained first: {folder}", flush=True)
            train(upstream, experiment.upstream_name, folder, True)
    return path


def prepare_vim(experiment: Downstream, train: Train) -> Prepared:
    checkpoint = upstream_checkpoint(experiment, train)
    upstream, tokenizer = restore(checkpoint, {"runtime": vars(experiment.runtime)})
    plain = {key: False for key in ("flip", "random_crop") if hasattr(experiment.data, key)}
    config, runtime = experiment.data, experiment.runtime
    images = build_data(replace(experiment, data=replace(config, **plain)))
    digest = tokenizer_digest(checkpoint)
    data: TokensDataModule | EncodedImages
    if experiment.model.encode_on_the_fly:
        data = EncodedImages(build_data(experiment), tokenizer, digest, upstream.trainer.precision)
    else:
        folder = tokens_for(upstream, tokenizer, digest, images, config.flip)
        sizes = {key: getattr(config, key) for key in ("batch_size", "val_batch_size", "data_seed")}
        data = TokensDataModule(TokensConfig(path=str(folder), **sizes), runtime.num_workers, experiment.seed)
        data.expect(tokenizer_digest=digest)
    data.setup("fit")
    L.seed_everything(experiment.seed, workers=True, verbose=False)  # whatever has been trained before
    module = VIM(experiment.model, data.codebook_size, data.grid_size, data.num_classes, config.image_size)
    module.use_tokenizer(tokenizer)
    return Prepared(module, data, images)


def tokens_for(upstream: Experiment, tokenizer: Tokenizer, digest: str, images: ImageDataModule, flip: bool) -> Path:
    """The folder with the tokens of `images`, plain and mirrored if `flip`; encoded now where they are missing."""
    assert images.train_set is not None and images.val_set is not None
    sources = {
        "train": ViewDataset(images.train_set, view_names(None, flip), seed=images.config.data_seed),
        "val": ViewDataset(images.val_set, ["plain"]),
    }
    tokenizer.to(L.Fabric(accelerator=upstream.runtime.accelerator, devices=1).device)
    job = make_job(replace(upstream, data=images.config), tokenizer, digest, images, sources, batch_size=64)
    folder = Path(upstream.runtime.output_dir) / "tokens" / job.name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # another worker may be at it
        write_tokens(job, folder)
    return folder
