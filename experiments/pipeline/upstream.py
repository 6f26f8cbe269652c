"""What a run needs before it can start: its data and its module, and for a downstream run the model it stands on.

Only what is missing is made: the upstream model is trained when it has no checkpoint, its tokens are made once.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from filelock import FileLock
from torch.utils.data import Subset

from datamodules import HeldOutDataModule, ImageDataModule, TokensConfig, TokensDataModule
from datamodules.tokens import TokenDataset
from datamodules.views import ViewDataset
from experiments.config.experiment import Downstream, Experiment, RuntimeConfig
from experiments.pipeline.build import build_data, build_model, restore_tokenizer
from experiments.pipeline.classifier import classifier_for
from experiments.pipeline.codebooks.build import codebook_for
from experiments.pipeline.codebooks.extraction import build_device
from experiments.pipeline.encode import EncodedImages, tokenizer_digest
from experiments.pipeline.inputs import inputs_of
from experiments.pipeline.token_writer import Job, is_finished, make_job, write_tokens
from experiments.pipeline.tokens import view_names
from experiments.runtime import records
from experiments.runtime.checkpoint_files import load_checkpoint
from experiments.runtime.ranks import from_main, is_main, main_first
from lightning_modules.linear_probe import BlockFeatures, FrozenFeatures, LinearProbe, TokenizerFeatures
from lightning_modules.networks.gpt import GPT
from lightning_modules.quantizers import LargeCodebook
from lightning_modules.tokenizer import Tokenizer
from lightning_modules.vim import VIM, VIMConfig

Train = Callable[[Experiment, str, Path, bool], Any]  # experiments.train.train


class Prepared(NamedTuple):
    """What is trained, on what. `images` are those that metrics compare with."""

    module: Any
    data: L.LightningDataModule
    images: ImageDataModule


def run_dir(experiment: Experiment, name: str) -> Path:
    """Where the run is trained: `experiments.runtime.records.run_dir` in its own `output_dir`, on the images there."""
    return records.run_dir(Path(experiment.runtime.output_dir), name, experiment, inputs_of(experiment).data_id)


def prepare(experiment: Experiment, train: Train) -> Prepared:
    """Data and module of the experiment; `train` trains a model that it stands on. Raises ValueError or OSError."""
    if isinstance(experiment, Downstream):
        return PREPARE[experiment.model.name](experiment, train)
    with main_first():  # caches, codebook
        images = build_data(experiment)
        module = build_model(experiment)
        if isinstance(module.quantizer, LargeCodebook):
            module.quantizer.fill(codebook_for(experiment, images.data_id))
    return Prepared(module, images, images)


def upstream_of(experiment: Downstream) -> Any:
    """The experiment that it stands on, to run where it runs; a tokenizer is not sharded."""
    runtime, upstream = experiment.runtime, experiment.upstream
    if not isinstance(upstream.model, VIMConfig):
        runtime = replace(runtime, strategy="auto")
    return replace(upstream, runtime=runtime)


def upstream_checkpoint(experiment: Downstream, train: Train) -> Path:
    """The final checkpoint of the upstream model, trained now if it is not there: by one run at a time."""
    upstream = upstream_of(experiment)
    with main_first():  # the first look at images reads them all
        folder = run_dir(upstream, experiment.upstream_name)
    path = folder / "checkpoints" / "final.ckpt"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".upstream.lock") if is_main() else nullcontext():
        if from_main(not path.is_file()):
            if is_main():
                print(f"{experiment.recipe} is trained first: {folder}", flush=True)
            train(upstream, experiment.upstream_name, folder, True)
    return path


def prepare_vim(experiment: Downstream, train: Train) -> Prepared:
    """What can go wrong with images and classifier does so before the tokenizer is trained."""
    generation = experiment.model.generation
    with main_first():
        images = plain_images(experiment)
        classifier = classifier_for(generation.classifier, experiment, images) if generation.acceptance else None
    checkpoint = upstream_checkpoint(experiment, train)
    upstream, tokenizer = restore_tokenizer(checkpoint, {"runtime": vars(experiment.runtime)})
    digest = tokenizer_digest(checkpoint)
    data: TokensDataModule | EncodedImages
    with main_first():
        if experiment.model.encode_on_the_fly:
            data = EncodedImages(build_data(experiment), tokenizer, digest, upstream.trainer.precision)
        else:
            data = token_data(experiment, upstream, tokenizer, digest, images)
        data.setup("fit")
    L.seed_everything(experiment.seed, workers=True, verbose=False)  # whatever has been trained before
    sizes = data.codebook_size, data.grid_size, data.num_classes
    module = VIM(experiment.model, *sizes, image_size=experiment.data.image_size)
    module.use_tokenizer(tokenizer, digest)
    if classifier is not None:
        module.use_classifier(classifier)
    return Prepared(module, data, images)


def prepare_probe(experiment: Downstream, train: Train) -> Prepared:
    """Of VIM's blocks on cached tokens, or of the tokenizer's features on images; held-out images are plain ones."""
    config = experiment.model
    with main_first():
        images = plain_images(experiment)
    labels = images.train_set.labels  # type: ignore[union-attr]
    num_heldout = round(config.heldout * len(labels))
    if images.num_classes < 2 or not num_heldout:
        raise ValueError(
            f"a probe needs labels and held-out images: {images.data_id} has {images.num_classes} class(es), and "
            f"model.heldout={config.heldout} of {len(labels)} training images are {num_heldout}"
        )
    checkpoint = upstream_checkpoint(experiment, train)
    features: FrozenFeatures
    if config.features == "vim":
        tokenizer_checkpoint = upstream_checkpoint(upstream_of(experiment), train)
        upstream, tokenizer = restore_tokenizer(tokenizer_checkpoint, {"runtime": vars(experiment.runtime)})
        with main_first():
            data = token_data(experiment, upstream, tokenizer, tokenizer_digest(tokenizer_checkpoint), images)
            data.setup("fit")
        features = BlockFeatures(restore_gpt(checkpoint, experiment.upstream.model, data), config.blocks)
        tokens = data.train_set
        assert isinstance(tokens, TokenDataset)
        plain = Subset(tokens, range(0, len(tokens), tokens.num_views))  # the first view of each image
        held_out = HeldOutDataModule(data, plain, labels, num_heldout)
    else:
        _, tokenizer = restore_tokenizer(checkpoint, {"runtime": vars(experiment.runtime)})
        features = TokenizerFeatures(tokenizer, config.features)
        assert images.train_set is not None
        held_out = HeldOutDataModule(build_data(experiment), images.train_set, labels, num_heldout)
    L.seed_everything(experiment.seed, workers=True, verbose=False)
    return Prepared(LinearProbe(config, features, images.num_classes), held_out, images)


PREPARE: dict[str, Callable[[Downstream, Train], Prepared]] = {"vim": prepare_vim, "linear_probe": prepare_probe}


def restore_gpt(path: Path, config: VIMConfig, tokens: TokensDataModule) -> GPT:
    """The trained transformer of a VIM's checkpoint. Raises ValueError when it was trained on another one's tokens."""
    checkpoint = load_checkpoint(path)
    tokens.expect(tokenizer_digest=checkpoint["tokenizer_digest"])
    state = checkpoint["state_dict"]
    weights = {key.removeprefix("gpt."): value for key, value in state.items() if key.startswith("gpt.")}
    gpt = GPT(config.gpt, tokens.codebook_size, tokens.grid_size, len(weights["start.weight"]) - 1)
    gpt.load_state_dict(weights)
    return gpt


def prepare_evaluation(experiment: Experiment, module: Any, train: Train, tokenizer: str | None = None) -> Prepared:
    """Data for a restored module, and for a VIM the tokenizer (of the checkpoint `tokenizer`, or its upstream run's).

    A VIM reads the tokens of its training where they still are, else the validation images are encoded now.
    """
    if not isinstance(experiment, Downstream):
        images = build_data(experiment)
        return Prepared(module, images, images)
    images = plain_images(experiment)
    if (generation := experiment.model.generation).acceptance:
        module.use_classifier(classifier_for(generation.classifier, experiment, images))
    upstream = lend(experiment, module, train, tokenizer)
    job = token_job(upstream, module.tokenizer, module.tokenizer_digest, images, experiment.data.flip)
    folder = token_folder(upstream, job)
    if not experiment.model.encode_on_the_fly and is_finished(folder, job.meta):
        return Prepared(module, read_tokens(experiment, folder), images)
    data = EncodedImages(images, module.tokenizer, module.tokenizer_digest, upstream.trainer.precision)
    return Prepared(module, data, images)


def lend(experiment: Downstream, module: VIM, train: Train, path: str | None = None) -> Experiment:
    """Lends a restored VIM its tokenizer and returns the tokenizer's experiment.

    Raises ValueError: the tokenizer is not the one whose tokens the VIM was trained on.
    """
    checkpoint = Path(path) if path else upstream_checkpoint(experiment, train)
    upstream, tokenizer = restore_tokenizer(checkpoint, {"runtime": vars(experiment.runtime)})
    try:
        module.use_tokenizer(tokenizer, tokenizer_digest(checkpoint))
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    return upstream


def plain_images(experiment: Experiment) -> ImageDataModule:
    """The experiment's images without augmentation."""
    plain: dict[str, Any] = {key: False for key in ("flip", "random_crop") if hasattr(experiment.data, key)}
    return build_data(replace(experiment, data=replace(experiment.data, **plain)))


def token_data(
    experiment: Downstream, upstream: Experiment, tokenizer: Tokenizer, digest: str, images: ImageDataModule
) -> TokensDataModule:
    """The tokens of `images` by the tokenizer of `upstream`, encoded now where they are missing; not set up."""
    job = token_job(upstream, tokenizer, digest, images, experiment.data.flip)
    return read_tokens(experiment, tokens_for(upstream, job))


def token_job(upstream: Experiment, tokenizer: Tokenizer, digest: str, images: ImageDataModule, flip: bool) -> Job:
    """Encoding `images`, those of training plain and mirrored if `flip`."""
    assert images.train_set is not None and images.val_set is not None
    sources = {
        "train": ViewDataset(images.train_set, view_names(None, flip), seed=images.config.data_seed),
        "val": ViewDataset(images.val_set, ["plain"]),
    }
    return make_job(replace(upstream, data=images.config), tokenizer, digest, images, sources, batch_size=64)


def token_folder(upstream: Experiment, job: Job) -> Path:
    return Path(upstream.runtime.output_dir) / "tokens" / job.name


def tokens_for(upstream: Experiment, job: Job) -> Path:
    """The folder with the tokens of `job`; encoded now where they are missing."""
    folder = token_folder(upstream, job)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # another worker may be at it
        job.tokenizer.to(build_device(upstream))
        write_tokens(job, folder)
    return folder


def read_tokens(experiment: Experiment, folder: Path) -> TokensDataModule:
    sizes = {key: getattr(experiment.data, key) for key in ("batch_size", "val_batch_size", "data_seed")}
    return TokensDataModule(TokensConfig(path=str(folder), **sizes), experiment.runtime.num_workers, experiment.seed)


def output_dir_of(checkpoint: str | Path) -> str:
    """OUTPUT_DIR of OUTPUT_DIR/experiments/RUN/checkpoints/FILE, where a run's upstream is found; else the default."""
    parents = Path(checkpoint).absolute().parents
    in_run = len(parents) > 3 and parents[0].name == "checkpoints" and parents[2].name == "experiments"
    return str(parents[3]) if in_run else RuntimeConfig().output_dir
