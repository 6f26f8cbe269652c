"""What a run reads beside its configuration, by contents: its images, and the source of its codebook."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.experiment import Experiment
from experiments.pipeline.build import data_module
from experiments.pipeline.codebooks.build import source_data, table_id
from lightning_modules.quantizers import LargeCodebookConfig


class Inputs(NamedTuple):
    """`data_id` is that of the images, followed by "+" and 8 hex digits where a run reads other images or files, too.

    `images`: what the record says of the images, for people.
    """

    data_id: str
    images: dict[str, Any]


Seen = dict[str, Inputs]


def inputs_of(experiment: Experiment, seen: Seen | None = None) -> Inputs:
    """The inputs of a run that would start now. Raises ValueError or OSError where images or a codebook are unreadable.

    `seen` keeps what was looked up, for many experiments on the same images.
    """
    seen = {} if seen is None else seen
    images, other = images_of(experiment, seen), other_id(experiment, seen)
    if other in ("", images.data_id):
        return images
    digits = hashlib.sha256(other.encode()).hexdigest()[:8]
    return Inputs(f"{images.data_id}+{digits}", images.images | {"others": [other]})


def images_of(experiment: Experiment, seen: Seen) -> Inputs:
    key = f"{experiment.runtime.data_dir} {experiment.data}"
    if key not in seen:
        data = data_module(experiment)
        seen[key] = Inputs(data.data_id, data.facts)
    return seen[key]


def other_id(experiment: Experiment, seen: Seen) -> str:
    """The id of what the model below reads, or of the codebook's source: a ready table, or its images; "" = none."""
    if experiment.upstream is not None:
        return inputs_of(replace(experiment.upstream, runtime=experiment.runtime), seen).data_id
    config = getattr(experiment.model, "quantizer", None)
    if not isinstance(config, LargeCodebookConfig):
        return ""
    if config.source.path:
        return table_id(Path(config.source.path))
    return images_of(source_data(experiment), seen).data_id if config.source.data else ""
