"""Finds the trained models that an experiment stands on; nothing here trains them."""

import argparse
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config import plugins
from experiments.config.compose import changed
from experiments.config.experiment import Experiment, RuntimeConfig
from experiments.config.identity import digest_of
from experiments.config.values import from_dotlist, merge
from experiments.pipeline.build import restore, restore_tokenizer
from experiments.pipeline.encode import tokenizer_digest
from experiments.pipeline.inputs import inputs_of
from lightning_modules.pretrained import find
from lightning_modules.tokenizer import Tokenizer


def run_dir(experiment: Experiment, name: str, data_id: str = "") -> Path:
    """OUTPUT_DIR/experiments/NAME_kK_dD_sSEED_DIGEST (of experiment and data), for people who read lists of runs.

    A run of the suite's earlier versions, which left out dimension and quantizer, keeps its folder.
    """
    digest = digest_of([experiment.digest(), data_id or inputs_of(experiment).data_id])
    runs, below = Path(experiment.runtime.output_dir) / "experiments", experiment.bottom.model
    size = f"_k{below.codebook_size}" if hasattr(below, "codebook_size") else ""
    earlier = runs / f"{name}{size}_s{experiment.seed}_{digest}"
    label = f"_{below.label}" if below.label else ""
    return earlier if earlier.is_dir() else runs / f"{name}{label}_s{experiment.seed}_{digest}"


def upstream_of(experiment: Experiment) -> Experiment | None:
    """The experiment directly below, to run where this one runs."""
    if (upstream := experiment.upstream) is None:
        return None
    runtime = experiment.runtime
    return replace(upstream, runtime=runtime if upstream.model.can_shard else replace(runtime, strategy="auto"))


def checkpoint_below(experiment: Experiment, upstream: Experiment, data_id: str = "") -> Path:
    """Where the final checkpoint of `upstream`, directly below `experiment`, is or will be.

    `data_id`: of the upstream run, where `experiment` has been trained on it; else the images here decide.
    """
    return run_dir(upstream, experiment.upstream_name, data_id) / "checkpoints" / "final.ckpt"


class Below(NamedTuple):
    """The trained models that an experiment stands on."""

    upstream: Any  # directly below
    tokenizer: Tokenizer  # at the bottom; the same where nothing lies between
    tokenizer_digest: str
    experiment: Experiment  # the tokenizer's


def restore_below(experiment: Experiment, tokenizer: str | None = None, data_id: str = "") -> Below | None:
    """The models below, from their checkpoints; None where there are none. `tokenizer`: the checkpoint to take instead.

    `data_id`: see `checkpoint_below`; what has been trained needs no images to find what it stands on.
    Raises ValueError, which names the command that trains it, when one is not there.
    """
    if (upstream := upstream_of(experiment)) is None:
        return None
    runtime = {"runtime": vars(experiment.runtime)}
    if upstream.upstream is None:
        path = existing(experiment, upstream, data_id) if tokenizer is None else Path(tokenizer)
        restored, module = restore_tokenizer(path, runtime)
        return Below(module, module, tokenizer_digest(path), restored)
    path = existing(experiment, upstream, data_id)
    module = restore(path, runtime)[1]
    below = restore_below(upstream, tokenizer, module.upstream_data_id)
    assert below is not None
    use_tokenizer(module, below, path)
    return below._replace(upstream=module)


def use_tokenizer(module: Any, below: Below, origin: str | Path) -> None:
    """Gives a restored module its tokenizer. Raises ValueError, which begins with `origin`: it is another one."""
    try:
        module.use_tokenizer(below.tokenizer, below.tokenizer_digest)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None


def existing(experiment: Experiment, upstream: Experiment, data_id: str = "") -> Path:
    """`checkpoint_below`, which must be there. Raises ValueError that names the command which trains it."""
    path = checkpoint_below(experiment, upstream, data_id)
    if not path.is_file():
        command = f"`{training_command(upstream, experiment.recipe)}` trains it"
        images = f" on the images {data_id}, or name its checkpoint with --tokenizer" if data_id else ""
        raise ValueError(f"{path}: not there; {command}{images}")
    return path


def training_command(experiment: Experiment, recipe: str) -> str:
    """The command that trains `experiment`, which is `recipe` with changes."""
    changes = changed(experiment, Path(recipe).stem)
    changes |= {f"runtime.{key}": getattr(experiment.runtime, key) for key in ("data_dir", "output_dir")}
    words = [f"{key}={'null' if value is None else value}" for key, value in changes.items() if key != "plugins"]
    words += [f"--import={name}" for name in plugins.imported]
    return f"python -m experiments.train {shlex.join([str(Path('experiments') / recipe), *words])}"


def restore_for(
    arguments: argparse.Namespace, fixed: str = "", restore: Callable[..., Any] = restore
) -> tuple[Experiment, Any]:
    """The model of a command, with its --data-dir, --output-dir (default: the run's own) and keys.

    `fixed` is what cannot be changed any more, "the model"; only data and runtime can. Raises ValueError.
    """
    overrides = from_dotlist(arguments.overrides)
    if fixed and (other := set(overrides) - {"data", "runtime"}):
        raise ValueError(f"{min(other)}: {fixed} is trained, only data.* and runtime.* can be changed")
    arguments.checkpoint = str(find(arguments.checkpoint))
    output_dir = arguments.output_dir or output_dir_of(arguments.checkpoint)
    where = {"runtime": {"data_dir": arguments.data_dir, "output_dir": output_dir}}
    return restore(arguments.checkpoint, merge(where, overrides))


def output_dir_of(checkpoint: str | Path) -> str:
    """OUTPUT_DIR of OUTPUT_DIR/experiments/RUN/checkpoints/FILE, where a run's upstream is found; else the default."""
    parents = Path(checkpoint).absolute().parents
    in_run = len(parents) > 3 and parents[0].name == "checkpoints" and parents[2].name == "experiments"
    return str(parents[3]) if in_run else RuntimeConfig().output_dir
