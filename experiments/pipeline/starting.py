"""Training that begins with the weights of a checkpoint: fine-tuning, or more steps, as a run of its own."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from experiments.config.experiment import Experiment, StartConfig
from lightning_modules.archives import DISCRIMINATOR, weights_hash
from lightning_modules.checks import require
from lightning_modules.pretrained import find, load_checkpoint

TABLE = "quantizer.table"  # of a large codebook

State = dict[str, Tensor]


def starting_from(experiment: Experiment, path: str, parts: str = "") -> Experiment:
    """`experiment` with the weights of `path`, by their hash, as a part of its identity.

    `parts`: names of the networks to take, such as "encoder,decoder"; "" = all. Raises ValueError for a file that is no
    checkpoint, or has none of them.
    """
    start = StartConfig(str(find(path)), parts=parts)
    return replace(experiment, start_from=replace(start, weights=hash_of(read(start))))


def read(start: StartConfig) -> State:
    """The weights to take. Raises ValueError, which names the file, for a part that is not there."""
    state: State = load_checkpoint(start.path)["state_dict"]
    names = start.names
    there = {key.partition(".")[0] for key in state}
    for name in names:
        require(name in there, f"{start.path}: has no part '{name}'; its parts are {', '.join(sorted(there))}")
    return {key: value for key, value in state.items() if not names or key.partition(".")[0] in names}


def hash_of(state: State) -> str:
    """`weights_hash`, with that of the discriminator after a "+" where there is one."""
    critic = {key.removeprefix(DISCRIMINATOR): value for key, value in state.items() if key.startswith(DISCRIMINATOR)}
    return weights_hash(state) + (f"+{weights_hash(critic)}" if critic else "")


def brings_codebook(start: StartConfig) -> bool:
    """Whether the table of a large codebook comes with the weights, and need not be made of images."""
    return bool(start.path) and TABLE in read(start)


def load_start(module: Any, start: StartConfig) -> None:
    """Gives the untrained `module` its first weights. A discriminator is taken where both have one.

    Raises ValueError: the file is another one than when the run was named, or a weight is missing or does not fit.
    """
    state = read(start)
    found = hash_of(state)
    require(found == start.weights, f"{start.path}: holds the weights {found}, the run began with {start.weights}")
    own, names = module.state_dict(), start.names
    wanted = {key for key in own if not names or key.partition(".")[0] in names}
    if not names:  # an exported model has none, and a training may do without
        wanted = {key for key in wanted if not key.startswith(DISCRIMINATOR) or key in state}
        state = {key: value for key, value in state.items() if not key.startswith(DISCRIMINATOR) or key in own}
    problems = [f"lacks {key}" for key in sorted(wanted - state.keys())]
    problems += [f"has {key}, which this model has not" for key in sorted(state.keys() - own.keys())]
    problems += [
        f"{key} is {tuple(value.shape)} there and {tuple(own[key].shape)} here"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        advice = "keep the model's keys as they were there, or take what fits with --parts, such as encoder,decoder"
        raise ValueError(f"{start.path}: does not fit this model: {'; '.join(problems[:2])}{more}: {advice}")
    module.load_state_dict(state, strict=False)
