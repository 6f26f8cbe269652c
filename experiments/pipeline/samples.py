"""Samples images of any trained prior. Image i of a seed is the same at any batch size and number of images."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.identity import digest_of, identity
from experiments.pipeline.build import build_data, plain
from experiments.pipeline.classifier import classifier_for
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.prepare import lend
from experiments.pipeline.sample_files import FORMATS, Images, check_out
from experiments.pipeline.upstream import restore_for
from experiments.runtime.progress import progress
from experiments.runtime.ranks import device_of
from lightning_modules.checks import require
from lightning_modules.metrics.classifier import LabelClassifier
from lightning_modules.metrics.extractors import to_uint8
from lightning_modules.metrics.generation import best_of_each_class
from lightning_modules.networks.sampling import SEED_STRIDE


@dataclass
class Job:
    """All that decides the images, checked, and where they go."""

    module: Any  # a trained one that generates, with its tokenizer, on its device
    sampling: Any  # the options of its kind of sampling
    classes: list[int]  # in turn; [] = unconditional
    num: int
    seed: int
    batch_size: int
    accept: float = 1.0
    classifier: LabelClassifier | None = None

    def labels(self, ids: list[int]) -> Tensor:
        """(B,); zeros of an unconditional model."""
        classes = torch.tensor(self.classes or [0])
        return classes[torch.tensor(ids) % len(classes)]

    def legend(self) -> str:
        """Numbers and names of the classes, where the model has names."""
        names = self.module.class_names
        words = [f"{number} {names[number]}" for number in self.classes[:20]] if names else []
        return f"classes: {', '.join(words)}{', ...' * (len(self.classes) > 20)}" if words else ""

    def sample(self, ids: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) in [-1, 1], tokens (B, T) and labels (B,) of the numbers `ids`."""
        return self.module.sample(ids, self.seed, self.labels(ids), self.sampling)


def batches(ids: list[int], size: int) -> Iterator[list[int]]:
    return (ids[first : first + size] for first in range(0, len(ids), size))


def images_of(job: Job, done: set[int]) -> Iterator[Images]:
    """Finished images by batches, those whose numbers are in `done` left out."""
    if job.classifier is not None:
        yield from accepted(job, done)
        return
    missing = [number for number in range(job.num) if number not in done]
    with progress("image", job.num, job.num - len(missing)) as show:
        for ids in batches(missing, job.batch_size):
            images, *_ = job.sample(ids)
            yield Images(ids, job.labels(ids), to_uint8(images).cpu())
            show(len(ids))


def accepted(job: Job, done: set[int]) -> Iterator[Images]:
    """The best images of each class among all candidates, of which only tokens and scores are kept in memory."""
    assert job.classifier is not None
    tokens, scores, candidates = [], [], list(range(round(job.num / job.accept)))
    with progress("candidate", len(candidates)) as show:
        for ids in batches(candidates, job.batch_size):
            images, found, wanted = job.sample(ids)
            tokens.append(found.cpu())
            scores.append(job.classifier(images, wanted).cpu())
            show(len(ids))
    all_tokens, labels = torch.cat(tokens), job.labels(candidates)
    kept = in_turn(best_of_each_class(torch.cat(scores), labels, job.num), labels)
    kept = [number for number in kept if number not in done]
    for ids in batches(kept, job.batch_size):
        yield Images(ids, labels[ids], to_uint8(job.module.decode(all_tokens[ids])).cpu())


def in_turn(kept: Tensor, labels: Tensor) -> list[int]:
    """The numbers `kept` (n,) so that their classes, out of `labels` (N,), come in turn again."""
    by_class: dict[int, list[int]] = {}
    for number, label in zip(kept.tolist(), labels[kept].tolist(), strict=True):
        by_class.setdefault(label, []).append(number)
    rounds = zip_longest(*(by_class[label] for label in sorted(by_class)))
    return [number for one in rounds for number in one if number is not None]


# ---- from arguments to a checked job


def parse_classes(text: str | None, num_classes: int, names: Sequence[str] = ()) -> list[int]:
    """ "0,3" -> [0, 3]; "all" and None: every class. A word that is one of `names` is that class, whatever number it
    may be. Raises ValueError."""
    if not num_classes:
        require(text is None, f"--classes {text}: the model was trained without classes")
        return []
    if text is None or text == "all":
        return list(range(num_classes))
    try:
        classes = [names.index(part) if part in names else int(part) for part in text.split(",")]
    except ValueError:
        known = f", or names: {', '.join(names[:20])}{', ...' * (len(names) > 20)}" if names else ""
        raise ValueError(f"--classes {text}: expected numbers such as 0,3 or the word all{known}") from None
    if min(classes) < 0 or max(classes) >= num_classes or len(set(classes)) < len(classes):
        raise ValueError(f"--classes {text}: must be different numbers from 0 to {num_classes - 1}")
    return classes


def check_numbers(arguments: argparse.Namespace) -> None:
    """Raises ValueError for what is out of range whatever the model is."""
    num, size, accept = arguments.num, arguments.batch_size, arguments.accept
    require(num >= 1 and size >= 1, f"--num {num} and --batch-size {size} must be at least 1")
    require(arguments.seed >= 0, f"--seed {arguments.seed} must not be negative")
    require(0 < accept <= 1, f"--accept {accept}: the share of candidates to keep lies in (0, 1]")
    is_enough = round(num / accept) <= SEED_STRIDE
    require(is_enough, f"--num {num}: a seed has {SEED_STRIDE:,} images, candidates included: take several")


OPTIONS = {name: name for name in ("temperature", "top_k", "top_p", "steps", "sampler", "eta", "precision")}
OPTIONS["guidance"] = "guidance_scale"


def sampling_of(module: Any, arguments: argparse.Namespace) -> Any:
    """The checkpoint's options with the given ones. Raises ValueError."""
    config = module.config
    given = {key: getattr(arguments, name) for name, key in OPTIONS.items() if getattr(arguments, name) is not None}
    if unknown := given.keys() - vars(config.sampling).keys():
        known = ", ".join(vars(config.sampling))
        raise ValueError(f"--{min(unknown).replace('_', '-')}: a '{config.name}' is not sampled so; it has {known}")
    sampling = replace(config.sampling, **given)
    sampling.check()
    config.check_sampling(sampling)
    return sampling


def prepare(arguments: argparse.Namespace) -> tuple[Job, Path, dict[str, object]] | None:
    """The job, where its images go, and its description; None when they are all there.

    Raises ValueError or FileNotFoundError before any long work.
    """
    check_numbers(arguments)
    experiment, module = restore_for(arguments, "the model")
    if not experiment.model.generates:
        raise ValueError(f"{arguments.checkpoint}: holds a '{experiment.model.name}', which generates no images")
    names = list(module.class_names)
    classes = parse_classes(arguments.classes, module.num_conditions, names)
    job = Job(module, sampling_of(module, arguments), classes, arguments.num, arguments.seed, arguments.batch_size)
    if arguments.accept < 1 and not classes:
        raise ValueError(f"--accept {arguments.accept}: the model was trained without classes to be accepted as")
    description: dict[str, object] = {
        "model": tokenizer_digest(arguments.checkpoint),  # it names any checkpoint's weights
        "tokenizer": module.tokenizer_digest,
        "sampling": identity(job.sampling),
        "classes": classes,
        "seed": job.seed,
        "accept": arguments.accept,
        "classifier": module.config.generation.classifier if arguments.accept < 1 else "",
        "format": arguments.format,
    }
    if names and classes:
        description["class_names"] = [names[number] for number in classes]
    if arguments.format != "png" or arguments.accept < 1:  # a folder may grow
        description["num"] = job.num
    name = f"{digest_of(description)[:8]}{FORMATS[arguments.format]}"
    source = Path(arguments.checkpoint).absolute()
    home = source if source.is_dir() else source.parent
    home = home.parent if home.name == "checkpoints" else home  # of a run
    out = Path(arguments.out or home / "samples" / name)
    if check_out(out, arguments.format, description, job.num):
        print(f"they are finished, nothing was done: {out}")
        return None
    lend(experiment, module, arguments.tokenizer)
    if arguments.accept < 1:
        job.accept = arguments.accept
        images = build_data(plain(experiment))
        if images.num_classes != module.num_classes:
            raise ValueError(f"{images.data_id}: has {images.num_classes} classes, the model {module.num_classes}")
        job.classifier = classifier_for(module.config.generation.classifier, experiment, images)
    module.to(device_of(experiment.runtime)).eval()
    return job, out, description
