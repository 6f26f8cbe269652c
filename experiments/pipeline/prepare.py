"""What a run needs before it can start: its images, tokens or latents, codebook, classifier and its module.

Only what is missing is made, once. What it stands on has been trained before; see `training.train`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch.utils.data import Subset

from datamodules import HeldOutDataModule, ImageDataModule, LatentsDataModule, TokensConfig, TokensDataModule
from datamodules.base import require_full_batch
from datamodules.tokens import TokenDataset
from experiments.config.experiment import Experiment
from experiments.costs.counts import parts_of
from experiments.pipeline.build import build_data, build_model, plain
from experiments.pipeline.classifier import classifier_for
from experiments.pipeline.codebooks.build import codebook_for
from experiments.pipeline.encode import EncodedImages
from experiments.pipeline.starting import brings_codebook, load_start
from experiments.pipeline.token_writer import Job, is_finished, make_job, write_encoded
from experiments.pipeline.tokens import view_names, views_of
from experiments.pipeline.upstream import Below, restore_below, use_tokenizer
from experiments.runtime.ranks import device_of, main_first
from lightning_modules.base import Setting
from lightning_modules.checks import require
from lightning_modules.pretrained import BELOW


class Prepared(NamedTuple):
    """What is trained, on what, and the images that metrics compare with."""

    module: Any
    data: L.LightningDataModule
    images: ImageDataModule


def gather(experiment: Experiment, trains: bool = True) -> tuple[ImageDataModule, Any]:
    """The images that metrics compare with, and the classifier: what may fail early. Raises ValueError or OSError;
    with `trains` also where the training images fill no batch, or the network does not fit the tokens."""
    model = experiment.model
    with main_first():  # caches, the classifier's head
        images = build_data(plain(experiment) if experiment.upstream or model.heldout else experiment)
        if trains:
            model.check_ready(images.num_classes)
            views = len(view_names(None, experiment.data.flip)) if experiment.is_encoded_once else 1
            size = views * len(images.train_set)  # type: ignore[arg-type]
            require_full_batch(size, experiment.data.batch_size, images.origin("train"))
            if experiment.upstream:
                parts_of(experiment)  # without memory: its network fits what is encoded
        found, needed = len(images.val_set), model.fewest_images  # type: ignore[arg-type]
        require(found >= needed, f"{images.origin('val')}: {found} validation image(s), the metrics take {needed}")
        if model.heldout:
            check_heldout(model, images)
        classifier = classifier_for(model.classifier, experiment, images) if model.classifier else None
    return images, classifier


def check_heldout(model: Any, images: ImageDataModule) -> int:
    """How many training images are held out. Raises ValueError."""
    total = len(images.train_set)  # type: ignore[arg-type]
    number = round(model.heldout * total)
    if images.num_classes < 2 or not number:
        raise ValueError(
            f"{model.name} needs labels and held-out images: {images.data_id} has {images.num_classes} class(es), and "
            f"model.heldout={model.heldout} of {total} training images are {number}"
        )
    return number


def prepare(experiment: Experiment, needs: tuple[ImageDataModule, Any] | None = None) -> Prepared:
    """Data and module, on the trained models below; `needs` is what `gather` gave. Raises ValueError or OSError."""
    images, classifier = needs or gather(experiment)
    below = restore_below(experiment)
    with main_first():  # tokens or latents, codebook
        data: Any = data_for(experiment, below, images)
        makes_codebook = experiment.model.needs_codebook and not brings_codebook(experiment.start_from)
        codebook = codebook_for(experiment, images.data_id) if makes_codebook else None
    setting = Setting(experiment.data.image_size, images.num_classes, codebook=codebook)
    if below is not None:
        setting = replace(
            setting,
            codebook_size=below.tokenizer.config.codebook_size,
            grid_size=below.tokenizer.encoder.grid,
            code_dim=below.tokenizer.config.code_dim,
            upstream=below.upstream,
            tokenizer=below.tokenizer,
            tokenizer_digest=below.tokenizer_digest,
        )
    L.seed_everything(experiment.seed, workers=True, verbose=False)  # whatever has been made before
    module = build_model(experiment, setting)
    if experiment.start_from.path:
        load_start(module, experiment, lambda: next(iter(images.ordered_train_dataloader()))["image"])
    if classifier is not None:
        module.use_classifier(classifier)
    return Prepared(module, data, images)


def data_for(experiment: Experiment, below: Below | None, images: ImageDataModule) -> L.LightningDataModule:
    """Set up: images, encoded at every step or once, or as they are; with `heldout` a second validation set."""
    model = experiment.model
    data: Any
    if below is None and not model.heldout:
        return images
    if below is None or model.inputs == "images":
        data = build_data(experiment)
    elif model.encode_on_the_fly:
        return encoded(experiment, below, build_data(experiment))
    else:
        job = encoding_job(experiment, below, images)
        job.tokenizer.to(device_of(experiment.runtime))
        write_encoded(job, job.folder, waits=True)
        data = read_encoded(experiment, job.folder)
        data.setup("fit")
    if not model.heldout:
        return data
    plain_set: Any = images.train_set
    if isinstance(tokens := data.train_set, TokenDataset):
        plain_set = Subset(tokens, range(0, len(tokens), tokens.num_views))  # the first view of each image
    labels = images.train_set.labels  # type: ignore[union-attr]
    return HeldOutDataModule(data, plain_set, labels, check_heldout(model, images))


def prepare_evaluation(experiment: Experiment, module: Any, tokenizer: str | None = None) -> Prepared:
    """Data for a restored module, and the tokenizer below it (of the checkpoint `tokenizer`, or its upstream run's).

    Tokens or latents are those of its training where they still are, else the validation images are encoded now. Trains
    nothing.
    """
    below = lend(experiment, module, tokenizer)  # may not be there; the classifier takes longer
    images, classifier = gather(experiment, trains=False)
    if classifier is not None:
        module.use_classifier(classifier)
    if below is None or experiment.model.inputs == "images":
        return Prepared(module, images, images)
    job = encoding_job(experiment, below, images)
    if experiment.is_encoded_once and is_finished(job.folder, job.meta):
        return Prepared(module, read_encoded(experiment, job.folder), images)
    return Prepared(module, encoded(experiment, below, images), images)


def lend(experiment: Experiment, module: Any, path: str | None = None) -> Below | None:
    """Gives a restored module its tokenizer, by default the one that was exported with it, or of its upstream run.

    Raises ValueError when it is not there, or not the one of the training.
    """
    if path is None and module.source is not None and (packed := module.source / BELOW).is_dir():
        path = str(packed)
    if (below := restore_below(experiment, path, module.upstream_data_id)) is not None:
        use_tokenizer(module, below, path or "the tokenizer below")
    return below


# ---- what images are encoded to


def encoded(experiment: Experiment, below: Below, images: ImageDataModule) -> EncodedImages:
    """At every step."""
    return EncodedImages(images, below.tokenizer, below.experiment.trainer.precision, experiment.model.inputs)


def encoding_job(experiment: Experiment, below: Below, images: ImageDataModule) -> Job:
    """Encoding `images` once, those of training plain and, where the experiment flips, mirrored."""
    tokenizer_experiment = replace(below.experiment, data=images.config)
    sources = views_of(images, view_names(None, experiment.data.flip))
    latents = experiment.model.latents_stored if experiment.model.inputs == "latents" else ""
    return make_job(tokenizer_experiment, below.tokenizer, below.tokenizer_digest, images, sources, latents=latents)


def read_encoded(experiment: Experiment, folder: Path) -> TokensDataModule:
    cls = LatentsDataModule if experiment.model.inputs == "latents" else TokensDataModule
    sizes = {key: getattr(experiment.data, key) for key in ("batch_size", "val_batch_size", "data_seed")}
    return cls(TokensConfig(path=str(folder), **sizes), experiment.runtime.num_workers, experiment.seed)
