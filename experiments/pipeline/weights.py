"""Weights of a finished training without what a checkpoint holds to go on with it: a few MB, to be measured anywhere.

OUTPUT_DIR/weights/<training digest>.<data_id>.pt, which experiments share that differ in their metrics alone, holds

    state_dict      without the discriminator, and without a frozen table of features, which is made again
    table           sha256 of that table; "" where there is none
    record          of the training: all of its result record but what the evaluation adds
    experiment, data_id, images, format    as in a checkpoint

Only of models that stand on no other one: others are measured where the models below them are.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_model
from experiments.pipeline.codebooks.build import codebook_for, codebook_path, sha256_of, with_source_data
from experiments.pipeline.inputs import Inputs
from experiments.runtime.files import replacing
from experiments.runtime.records import Record
from lightning_modules.base import Setting
from lightning_modules.pretrained import load_checkpoint

DISCRIMINATOR, TABLE = "discriminator.", "quantizer.table"
KEPT = ("format", "experiment", "data_id", "images", "sizes")


def weights_path(experiment: Experiment, data_id: str) -> Path:
    """Where the weights are kept; those of version 0.2.0, named by the whole experiment, stay where they are."""
    folder = Path(experiment.runtime.output_dir) / "weights"
    earlier = folder / f"{experiment.digest()}.{data_id}.pt"
    return earlier if earlier.is_file() else folder / f"{experiment.training_digest()}.{data_id}.pt"


def can_wait(experiment: Experiment) -> bool:
    """Whether the run ends with its weights, and is measured later."""
    return experiment.runtime.evaluate_later and experiment.upstream is None


def keep_weights(experiment: Experiment, module: Any, checkpoint: Path, record: Record) -> None:
    """Writes the weights of the final `checkpoint` of `module`, with the `record` of its training."""
    whole, state = load_checkpoint(checkpoint), {}
    is_frozen = experiment.model.needs_codebook and TABLE in dict(module.named_buffers())
    for name, tensor in whole["state_dict"].items():
        if not name.startswith(DISCRIMINATOR) and not (is_frozen and name == TABLE):
            state[name] = tensor.clone() if isinstance(tensor, Tensor) else tensor  # not all of a shared storage
    table = sha256_of(whole["state_dict"][TABLE]) if is_frozen else ""
    content = {key: whole[key] for key in KEPT if key in whole}
    path = weights_path(experiment, record["data_id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, concurrent_writers=True) as file:
        torch.save(content | {"state_dict": state, "table": table, "record": record}, file)


def read_weights(path: Path, experiment: Experiment) -> dict[str, Any]:
    """The file's content, with a record of `experiment`.

    Raises ValueError that names the file when it is damaged, or not of this experiment's training.
    """
    content = load_checkpoint(path)
    record = content.get("record")
    if not isinstance(record, dict) or not same_training(record, experiment):
        raise ValueError(f"{path}: not the weights of this experiment; delete it to train them again")
    own = {"digest": experiment.digest(), "config": experiment.identity()}
    return content | {"record": record | own}


def same_training(record: Record, experiment: Experiment) -> bool:
    """Whether the record is of all that decides this experiment's trained weights, but for the images."""
    lines = experiment.differences(record["config"])
    return all(line.startswith(experiment.measured_only) for line in lines)


def restore_weights(path: Path, experiment: Experiment, inputs: Inputs) -> tuple[Any, Record]:
    """The trained module and the record of its training.

    Raises ValueError when the weights do not fit, or the codebook here is not the one of the training.
    """
    content, codebook = read_weights(path, experiment), None
    if experiment.model.needs_codebook:
        images = inputs.data_id.partition("+")[0]
        codebook = codebook_for(experiment, images)
        if content["table"] not in ("", sha256_of(codebook)):
            file = codebook_path(*with_source_data(experiment, images))
            raise ValueError(
                f"{path}: trained with another codebook than the one that is made here (sums of another machine are "
                f"rounded otherwise): bring {file.name} from there to {file.parent}"
            )
    module = build_model(experiment, Setting(experiment.data.image_size, codebook=codebook))
    try:
        missing, unexpected = module.load_state_dict(content["state_dict"], strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: the weights do not fit the model: {' '.join(str(error).split())}") from None
    allowed = [TABLE] if content["table"] else []
    missing = [name for name in missing if not name.startswith(DISCRIMINATOR) and name not in allowed]
    if missing or unexpected:
        raise ValueError(f"{path}: the weights do not fit the model: {', '.join([*missing, *unexpected])}")
    return module, content["record"]
