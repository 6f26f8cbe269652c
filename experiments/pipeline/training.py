"""Trains one experiment and writes its result record."""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from datamodules import ImageDataModule
from experiments.config import plugins
from experiments.config.compose import CONFIG, changed, described
from experiments.config.experiment import Experiment
from experiments.pipeline.build import build_data, first_images, plain
from experiments.pipeline.evaluation import evaluate, measuring_trainer, use_reference
from experiments.pipeline.inputs import Inputs, inputs_of
from experiments.pipeline.prepare import gather, prepare, prepare_evaluation
from experiments.pipeline.summary import print_summary
from experiments.pipeline.upstream import checkpoint_below, upstream_of
from experiments.pipeline.weights import can_wait, keep_weights, read_weights, restore_weights, weights_path
from experiments.runtime import health, progress
from experiments.runtime.callbacks import Dashboard, InCheckpoint
from experiments.runtime.errors import is_main
from experiments.runtime.files import LOCK, inherited, locked, replacing, require_writable, write_json
from experiments.runtime.loggers import check_loggers, log_hyperparameters
from experiments.runtime.progress import Throughput
from experiments.runtime.ranks import check_devices, device_of, from_main, main_first, num_devices, spread
from experiments.runtime.records import FORMAT, Record, environment, read_record, record_path, same_experiment
from experiments.runtime.signals import StopRequest, wait_for
from experiments.runtime.trainer import build_trainer, quiet
from lightning_modules.lightning_fixes import not_swallowed
from lightning_modules.pretrained import load_checkpoint


def train(
    experiment: Experiment,
    name: str,
    folder: Path,
    needs_checkpoint: bool = False,
    waits: bool = True,
    callbacks: Sequence[Callback] = (),
) -> Record:
    """Trains `experiment` in `folder`, from its last checkpoint if there is one, evaluates it and writes its record.

    What it stands on is trained first, where its checkpoint is not there.

    Returns the record, which is also written to <runtime.output_dir>/records/<digest>.<data_id>.json. A finished run is
    not trained again, unless its checkpoint is needed and gone. While another run trains there this one `waits`, and
    then continues its work, or raises ValueError. Several processes have been joined before (`join`); all return the
    same record, which rank 0 writes.
    """
    quiet()
    check_devices(experiment)
    check_loggers(experiment.runtime)
    records = Path(experiment.runtime.output_dir) / "records"
    with main_first():  # the first look at images reads them all
        inputs = inputs_of(experiment)
    path = record_path(records, experiment, inputs.data_id)
    needed = folder / "checkpoints" / "final.ckpt" if needs_checkpoint else None
    if record := finished(path, experiment, needed):
        return record
    with ExitStack() as stack:
        with main_first():
            require_writable(records)
            require_writable(folder)
            advice = "wait for it or stop it, or choose another --run-dir"
            stack.enter_context(locked(folder / LOCK, "is training there", waits, advice))
        if record := finished(path, experiment, needed):
            return record
        kept = weights_path(experiment, inputs.data_id)
        if needed is None and from_main(kept.is_file()):
            return evaluate_weights(kept, experiment, inputs, path)
        return train_alone(experiment, inputs, name, folder, path, callbacks, waits_for_record=needed is None)


def plan(experiment: Experiment, folder: Path) -> list[str]:
    """What `train` would do in `folder`, a line each. Nothing is trained or written; raises what it would raise."""
    check_devices(experiment)
    check_loggers(experiment.runtime)
    inputs = inputs_of(experiment)
    path = record_path(Path(experiment.runtime.output_dir) / "records", experiment, inputs.data_id)
    if finished(path, experiment, None):
        return [f"finished, nothing to do: {path}"]
    if (kept := weights_path(experiment, inputs.data_id)).is_file():
        return [f"trained, to be evaluated: {kept}"]
    resumed = resume_point(folder / "checkpoints", experiment, inputs)
    data = build_data(plain(experiment) if experiment.upstream else experiment)
    size = len(data.train_set)  # type: ignore[arg-type]
    how = f"continues from {resumed}" if resumed else "begins"
    lines = [f"{folder}: {how}; {experiment.trainer.max_steps:,} steps of {experiment.data.batch_size} images"]
    lines += [f"  images: {inputs.data_id}, {size:,} to train on, {len(data.val_set):,} to validate"]  # type: ignore[arg-type]
    below = upstream_of(experiment)
    if below is not None:
        checkpoint = checkpoint_below(experiment, below)
        state = "trained" if checkpoint.is_file() else "is trained first"
        lines += [f"  {experiment.recipe}: {state}: {checkpoint.parents[1]}"]
        lines += [] if checkpoint.is_file() else [f"  {line}" for line in plan(below, checkpoint.parents[1])]
    return lines


def finished(path: Path, experiment: Experiment, checkpoint: Path | None) -> Record | None:
    """The record at `path`, if it is of this experiment, and the checkpoint if one is needed; all ranks get it."""
    record = None
    with main_first():
        if path.is_file() and (checkpoint is None or checkpoint.is_file()):
            found = read_record(path)
            record = found if same_experiment(found, experiment) else None
    return from_main(record)  # a shared disk may show others less


def train_alone(
    experiment: Experiment,
    inputs: Inputs,
    name: str,
    folder: Path,
    path: Path,
    callbacks: Sequence[Callback] = (),
    waits_for_record: bool = True,
) -> Record:
    """`train`, where no other process does the same; the record is written to `path`.

    With `runtime.evaluate_later` the weights are kept instead, and the record of the training alone is returned, which
    has no `evaluated_on`.
    """
    made_on = environment()  # the code that runs, not what is committed in the meantime
    checkpoints, output_dir = folder / "checkpoints", Path(experiment.runtime.output_dir)
    with main_first():
        resumed = resume_point(checkpoints, experiment, inputs)
    resumed = from_main(resumed)
    needs = gather(experiment)  # before hours of work on what it stands on
    train_upstream(experiment)
    health.reset_peak_memory()
    throughput = Throughput()
    module, data, images = prepare(experiment, needs)
    module.shown = first_images(images)
    if is_main():
        module.progress = progress.progress
    text, changes = described(experiment, name), {"recipe": name} | changed(experiment, name)
    if is_main():
        with replacing(folder / CONFIG) as file:
            file.write(text.encode())
    if is_main() and not progress.prefix:  # one of many says little
        print_summary(experiment, module, name, images.data_id, images.placing(device_of(experiment.runtime)))

    with StopRequest() as stop, not_swallowed(), health.naming_last_checkpoint(checkpoints):
        kept, shown = InCheckpoint(configuration=text, **inputs._asdict()), Dashboard(experiment.trainer, text, changes)
        trainer = build_trainer(experiment, module, folder, kept, shown, throughput, *callbacks, stop=stop)
        if experiment.trainer.validate_every:
            use_reference(trainer, module, images, output_dir)
        trainer.fit(module, data, ckpt_path=resumed, weights_only=True)
        final = checkpoints / "final.ckpt"
        if resumed != final:
            trainer.save_checkpoint(final)
        if trainer.is_global_zero:
            (checkpoints / "last.ckpt").unlink(missing_ok=True)  # final.ckpt holds the same and more
        stop.check(f"the trained model is in {final}")
    record = {
        "format": FORMAT,
        "name": name,
        "digest": experiment.digest(),
        "data_id": inputs.data_id,
        "images": inputs.images,
        "config": experiment.identity(),
        "seed": experiment.seed,
        "metrics": module.training_metrics,
        "history": module.history,
        "protocols": module.protocols(),
        "parameters": module.num_parameters,
        "images_per_second": throughput.images_per_second,
        "device": str(trainer.strategy.root_device),
        "num_devices": trainer.world_size,
        "num_concurrent": progress.num_concurrent,
        "environment": made_on,
    } | spent(throughput)
    is_later = can_wait(experiment) and waits_for_record
    if trainer.is_global_zero and (is_later or experiment.runtime.keep_weights) and experiment.upstream is None:
        keep_weights(experiment, module, final, record)
    if not is_later:
        with not_swallowed():
            record |= measured(record, trainer, module, data, images, output_dir)
        record |= spent(throughput)
    if trainer.is_global_zero:
        log_hyperparameters(trainer, changes, record["metrics"].keys() - module.training_metrics.keys())
        for logger in trainer.loggers:
            logger.finalize("success")
        if not is_later:
            write_json(path, record)
    return record


def spent(throughput: Throughput) -> Record:
    """What the run has cost so far."""
    return {
        "wall_seconds": throughput.wall_seconds,
        "peak_memory_bytes": health.peak_memory_bytes(),
        "peak_device_memory_bytes": health.peak_device_memory_bytes(),
    }


def evaluate_weights(kept: Path, experiment: Experiment, inputs: Inputs, path: Path) -> Record:
    """Measures weights that were kept, and writes the record to `path`: but for machine and times, the one that the
    training would have written. With `runtime.evaluate_later` only returns the record of the training."""
    if can_wait(experiment):
        return read_weights(kept, experiment)["record"]
    module, record = restore_weights(kept, experiment, inputs)
    module, data, images = prepare_evaluation(experiment, module)
    trainer = measuring_trainer(experiment, **spread(experiment))
    record |= measured(record, trainer, module, data, images, Path(experiment.runtime.output_dir))
    record["evaluated_on"] |= environment()
    if is_main():
        write_json(path, record)
    return record


def measured(
    record: Record,
    trainer: L.Trainer,
    module: Any,
    data: L.LightningDataModule,
    images: ImageDataModule,
    output_dir: Path,
) -> Record:
    """What the evaluation adds to the record of a training."""
    metrics = evaluate(trainer, module, data, images, output_dir)
    return {
        "metrics": metrics | record["metrics"],
        "history": record["history"] | {name: values for name, values in module.history.items() if values},
        "protocols": record["protocols"] | module.protocols(),
        "evaluated_on": {"device": health.device_name(trainer.strategy.root_device)},
    }


def train_upstream(experiment: Experiment) -> None:
    """Trains all that the experiment stands on, from the bottom up, where its final checkpoint is not there."""
    if (upstream := upstream_of(experiment)) is None:
        return
    train_upstream(upstream)
    path = checkpoint_below(experiment, upstream)
    if from_main(path.is_file()):
        return
    if is_main():
        print(f"{experiment.recipe} is trained first: {path.parents[1]}", flush=True)
    train(upstream, experiment.upstream_name, path.parents[1], needs_checkpoint=True)


def train_apart(experiment: Experiment, name: str, run_dir: Path, callbacks: Sequence[Callback] = ()) -> Record:
    """`train`, for a process that must stay alone: a run on several devices gets processes of its own.

    Raises RuntimeError when they fail; their messages are on the terminal. `callbacks` are for one device only.
    """
    if num_devices(experiment.runtime) == 1:
        return train(experiment, name, run_dir, callbacks=callbacks)
    if callbacks:
        raise ValueError("a trial of a search is watched by this process and takes one device: runtime.devices=1")
    file = run_dir / f"{name}.json"
    write_json(file, experiment.identity() | {"runtime": vars(experiment.runtime)})
    command = [sys.executable, "-m", "experiments.train", str(file), "--run-dir", str(run_dir)]
    command += [f"--import={name}" for name in plugins.imported]
    concurrent = {progress.CONCURRENT: str(progress.num_concurrent)}
    process = subprocess.Popen(command, env=os.environ | inherited(run_dir / LOCK) | concurrent)
    wait_for([process])
    if process.returncode:
        raise RuntimeError(f"training on several devices ended with status {process.returncode}: {' '.join(command)}")
    data_id = inputs_of(experiment).data_id
    if can_wait(experiment):
        return read_weights(weights_path(experiment, data_id), experiment)["record"]
    return read_record(record_path(Path(experiment.runtime.output_dir) / "records", experiment, data_id))


def resume_point(checkpoints: Path, experiment: Experiment, inputs: Inputs) -> Path | None:
    """The newest checkpoint of a run that was stopped; None to start afresh.

    final.ckpt comes first: where it is there without a record, the run was stopped while it was evaluated.
    Raises ValueError when the file is damaged, of another experiment or of other images.
    """
    for path in (checkpoints / "final.ckpt", checkpoints / "last.ckpt"):
        if path.is_file():
            checkpoint = load_checkpoint(path)
            differ = experiment.differences(checkpoint["experiment"])
            if (data_id := checkpoint.get("data_id")) != inputs.data_id:
                differ.append(f"images {data_id}, here {inputs.data_id}")
            if differ:
                raise ValueError(
                    f"{path}: of another experiment ({'; '.join(differ)}); delete it or choose another --run-dir"
                )
            return path
    return None
