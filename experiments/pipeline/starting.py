"""Training that begins with the weights of a checkpoint: fine-tuning, or more steps, as a run of its own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from experiments.config.experiment import Experiment, StartConfig
from lightning_modules.archives import DISCRIMINATOR, weights_hash
from lightning_modules.checks import require
from lightning_modules.pretrained import find, load_checkpoint
from lightning_modules.quantizers.placed import PlacedQuantizer

TABLE = "quantizer.table"  # of a large codebook

State = dict[str, Tensor]


def starting_from(experiment: Experiment, path: str, parts: str = "") -> Experiment:
    """`experiment` with the weights of `path`, by their hash, as a part of its identity.

    `parts`: names of the networks to take, such as "encoder,decoder"; "" = all. Raises ValueError for a file that is no
    checkpoint, or has none of them. A codebook that is smaller there than in `experiment` is grown: see `load_start`.
    """
    start = StartConfig(str(find(path)), parts=parts)
    start = replace(start, weights=hash_of(read(start)))
    model = load_checkpoint(start.path)["experiment"]["model"]
    there, here = (config.get("codebook_size", 0) for config in (model, vars(experiment.model)))
    is_smaller = 0 < there < here and (not start.names or "quantizer" in start.names)
    require(
        not (is_smaller and experiment.model.needs_codebook),
        f"{path}: a codebook of features is built, not grown from {there:,} to {here:,} codes: take the networks with "
        "--parts encoder,decoder,pre_quant,post_quant",
    )
    return replace(experiment, start_from=replace(start, grown_from=there if is_smaller else 0))


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


def load_start(module: Any, experiment: Experiment, images: Callable[[], Tensor]) -> None:
    """Gives the untrained `module` its first weights. A discriminator is taken where both have one.

    A codebook that is grown keeps its codes; the new ones are placed on latents of `images`, a batch (B, 3, H, W) of
    the training's, or, of a frozen table, are the rows that the new table has there.

    Raises ValueError: the file is another one than when the run was named, or a weight is missing or does not fit.
    """
    start = experiment.start_from
    state = read(start)
    found = hash_of(state)
    require(found == start.weights, f"{start.path}: holds the weights {found}, the run began with {start.weights}")
    own, names = module.state_dict(), start.names
    if start.grown_from:
        state |= grown(state, own, start)
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
    if start.grown_from and isinstance(module.quantizer, PlacedQuantizer):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(experiment.seed)
            was_training = module.training
            latents = module.eval().latents(images())
            images_a_step = experiment.data.batch_size * experiment.model.optimizer.accumulate
            module.quantizer.grow(start.grown_from, latents, images_a_step)
            module.train(was_training)


def grown(state: State, own: State, start: StartConfig) -> State:
    """The weights of the quantizer in `state` that are larger in `own`, with its rows after theirs."""
    keys = [key for key in state if key.startswith("quantizer.") and key in own]
    bigger = [key for key in keys if len(state[key].shape) and len(state[key]) == start.grown_from < len(own[key])]
    return {key: torch.cat([state[key], own[key][start.grown_from :]]) for key in bigger}
