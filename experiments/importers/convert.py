"""Turns a public checkpoint into one of this suite."""

import hashlib
import warnings
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.values import merge, select
from experiments.importers import FAMILIES, Options, Source, family_of
from experiments.importers.family import COMPILED, Tensors, below, some, uncompiled
from experiments.importers.files import read_state_dict
from experiments.pipeline.build import build_model
from experiments.runtime.files import replacing
from lightning_modules.checks import require
from lightning_modules.losses import LossConfig
from lightning_modules.optimizer import OptimizerConfig
from lightning_modules.pretrained import CHECKPOINT_FORMAT

# What the public code trained with is not taken over: no discriminator and no perceptual network is built.
NO_LOSSES = {"model": {"loss": asdict(LossConfig(l2=1.0)), "optimizer": asdict(OptimizerConfig())}}


def convert(
    name: str,
    tensors: Tensors,
    options: Options | None = None,
    overrides: dict[str, Any] | None = None,
    origin: str = "state dict",
) -> tuple[Experiment, Tensors]:
    """The experiment, and its module's state dict, for a state dict of family `name`, whose tensors may be on meta.

    Raises ValueError, which begins with `origin`, when the keys are of another family (it is named), when a key is
    missing, unknown, or of a shape that does not fit.
    """
    family = FAMILIES[name]
    if select(overrides or {}, "data.image_size") is not None:
        raise ValueError("data.image_size: use --image-size, where attention sits depends on it")
    other = family_of(tensors)
    if other not in ("", name) and not (family.fits(tensors) and not FAMILIES[other].mark):
        raise ValueError(f"{origin}: not a {name} checkpoint, its keys look like {other}: use --from {other}")
    tensors = family.adapt(tensors, origin)[0]
    values = family.infer(Source(tensors, origin, name), options or Options())
    experiment = parse(merge(NO_LOSSES, values, overrides or {}), origin)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # the metrics' networks say that their weights are not loaded
        needed = build_model(experiment).state_dict()

    weights = {key: family.weight(key, experiment.tokenizer) for key in needed}
    if unknown := [key for key, weight in weights.items() if weight is None]:
        raise ValueError(f"{origin}: a {name} checkpoint holds nothing for our {some(unknown)}; change the overrides")
    found = {key: weight for key, weight in weights.items() if weight is not None}
    used = {key for weight in found.values() for key in weight.keys}
    if missing := [key for key in sorted(used) if key not in tensors]:
        raise ValueError(f"{origin}: lacks {some(missing)}, which a {name} model of its other shapes has")
    if extra := [key for key in tensors if key not in used and not key.startswith(tuple(family.dropped))]:
        raise ValueError(f"{origin}: holds {some(extra)}, of which --from {name} knows nothing; no key is ignored")

    state: Tensors = {}
    for key, weight in found.items():
        sources = [tensors[theirs] for theirs in weight.keys]
        try:
            state[key] = weight.make(*(source.float() for source in sources))
        except (RuntimeError, IndexError):  # shapes that do not even go together
            state[key] = torch.empty(0, device="meta")
        if state[key].shape != needed[key].shape:
            theirs = ", ".join(f"'{k}' {tuple(s.shape)}" for k, s in zip(weight.keys, sources, strict=True))
            raise ValueError(f"{origin}: {theirs} does not fit our '{key}' {tuple(needed[key].shape)}")
    return experiment, state


def unwrapped(name: str, tensors: Tensors, origin: str) -> tuple[Tensors, str]:
    """The entries of family `name` alone, and what has been taken off their keys, in words ("" = nothing).

    Raises ValueError where several tokenizers are in the file.
    """
    plain = uncompiled(tensors)
    prefixes = FAMILIES[name].prefixes(plain)
    if len(prefixes) > 1 and "" not in prefixes:
        raise ValueError(
            f"{origin}: holds {name} tokenizers under the prefixes {some(prefixes)}: save one of them alone"
        )
    prefix = "" if "" in prefixes or not prefixes else prefixes[0]
    own, words = below(plain, prefix), []
    if plain.keys() != tensors.keys():
        words.append(f"taken off the keys: '{COMPILED}', of torch.compile")
    if prefix:
        words.append(f"taken off the keys: '{prefix}'; {len(plain) - len(own)} keys without it are not imported")
    return own, "\n".join(f"  {line}" for line in words)


def read_public(
    name: str, path: Path, options: Options | None = None, overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """A checkpoint of this suite, made of the file `path` of family `name`, and a report in words.

    The family "" is that of the keys. Raises ValueError for anything but a clean import.
    """
    wrappers = FAMILIES[name].wrappers if name else sorted({w for f in FAMILIES.values() for w in f.wrappers})
    tensors, wrapper = read_state_dict(path, wrappers)
    name = name or family_of(uncompiled(tensors))
    require(bool(name), f"{path}: keys such as {some(tensors)} are of none of {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    tensors, taken_off = unwrapped(name, tensors, str(path))
    tensors, adapted = family.adapt(tensors, str(path))
    options = replace(options or Options(), folder=path.parent)
    experiment, state = convert(name, tensors, options, overrides, str(path))
    dropped = Counter(prefix for key in tensors for prefix in family.dropped if key.startswith(prefix))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    checkpoint = {
        "format": CHECKPOINT_FORMAT,
        "experiment": experiment.identity(),
        "state_dict": {key: own(tensor) for key, tensor in state.items()},
        "generator_steps": 0,
        "epoch_usage": {},
        "epoch_tokens": 0,
        "imported": {"family": name, "file": path.name, "sha256": digest, "dropped": dict(dropped), "note": adapted},
    }
    model = experiment.tokenizer
    lines = [
        f"{model.name}, {model.codebook_size:,} codes of {model.code_dim} dimensions, "
        f"{experiment.data.image_size} pixels; imported {len(tensors) - dropped.total()} keys of {wrapper or 'its top'}"
    ]
    lines += [f"  left out: {count} keys {prefix}* ({family.dropped[prefix]})" for prefix, count in dropped.items()]
    lines += [f"  {adapted}"] if adapted else []
    return checkpoint, "\n".join([*lines, taken_off] if taken_off else lines)


def import_checkpoint(
    name: str,
    path: Path,
    out: Path,
    options: Options | None = None,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> str:
    """`read_public`, written to `out` atomically, unless `dry_run`; returns its report.

    Raises ValueError as it does, or for `out`.
    """
    require(not out.is_dir(), f"{out}: a folder; give the name of the file to write")
    require(force or not out.exists(), f"{out}: exists; choose another name, or --force")
    require(out.resolve() != path.resolve(), f"{out}: is the file to import; choose another name")
    checkpoint, report = read_public(name, path, options, overrides)
    if not dry_run:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as file:
            torch.save(checkpoint, file)
    return f"{out}: {report}"


def own(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that does not share its storage with others: torch.save would write all of it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
