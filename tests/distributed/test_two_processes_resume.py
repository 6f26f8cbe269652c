"""Two processes that are killed or stopped together, and started again by the same command, end with the same bits."""

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_experiment
from resume_cases import PROJECT, differences, final, recipe, record
from vim_cases import tiny_vim

from experiments.config.experiment import Experiment
from experiments.pipeline.training import train_apart
from experiments.runtime.files import LOCK, locked
from experiments.runtime.records import read_record

PATIENCE = 900  # seconds, on a machine that is busy with other things
STEPS = ("trainer.max_steps=24", "trainer.checkpoint_every=3", "trainer.weight_ema=0.5")
GAME = "model.loss={adversarial: 0.1, discriminator_start: 2, adversarial_start: 4}"
BELOW = [*STEPS, GAME, "model.name=vqgan_ema", "model.quantizer.dead_code_threshold=0.9", "data.flip=true"]


def chain(folder: Path) -> Experiment:
    """The tokenizer has a game, revived codes and counts of an epoch; VIM draws masks of dropout on each rank."""
    options = ("runtime.devices=2", *STEPS, "model.keep_tokens=0.8", "model.gpt.dropout=0.2", "data.val_size=5")
    return tiny_vim(functools.partial(tiny_experiment, folder), *options, upstream=BELOW)


def started(path: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that a signal can reach both processes, as a batch system's does."""
    command = [sys.executable, "-m", "experiments.train", path, "--run-dir", str(run)]
    with open(log, "ab") as output:
        return subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=output, start_new_session=True)


def last(runs: Path) -> Path | None:
    """The last checkpoint of the one run of a folder that is not at its end."""
    return next(runs.glob("*/checkpoints/last.ckpt"), None)


def interrupted(path: str, run: Path, log: Path, number: signal.Signals, runs: Path) -> int:
    """Sends the signal as soon as a run in `runs` has a checkpoint; the status of the first process."""
    process = started(path, run, log)
    try:
        deadline = time.monotonic() + PATIENCE
        while last(runs) is None:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.005)
        os.killpg(process.pid, number)
        return process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def left_by(experiment: Experiment, run: Path, tokenizers: Path) -> list[Any]:
    """The final checkpoints and records of both models."""
    (tokenizer,) = tokenizers.glob("*/checkpoints/final.ckpt")
    records = Path(experiment.runtime.output_dir) / "records"
    return [final(run), final(tokenizer.parents[1]), *map(record, sorted(records.iterdir()))]


def test_two_processes_go_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """VIM on a tokenizer: killed while the tokenizer is trained, stopped by a batch system's signal while VIM is.

    The run that nobody stops is started by one process, as a sweep's worker does; its cell is that of one device.
    """
    for name, value in {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}.items():
        monkeypatch.setenv(name, value)
    experiment = chain(tmp_path / "straight")
    run = tmp_path / "straight/vims/run"
    with locked(run / LOCK, "is training there", waits=False):
        made = train_apart(experiment, "recipe", run)
    assert (
        made["num_devices"] == 2
        and made["name"] == "recipe"
        and made["protocols"]["bits_per_token/val"].endswith("/n5")
    )
    records = Path(experiment.runtime.output_dir) / "records"
    assert read_record(next(records.glob(f"{tiny_digest(tmp_path)}.*"))) == made
    expected = left_by(experiment, run, tmp_path / "straight/runs/experiments")

    experiment = chain(tmp_path / "killed")
    path, log, run = recipe(experiment, tmp_path / "recipe.yaml"), tmp_path / "log", tmp_path / "killed/vims/run"
    tokenizers = tmp_path / "killed/runs/experiments"
    assert interrupted(path, run, log, signal.SIGKILL, tokenizers) == -signal.SIGKILL
    assert steps_done(tokenizers) < 24 and last(run.parent) is None
    assert interrupted(path, run, log, signal.SIGTERM, run.parent) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert last(tokenizers) is None and 0 < steps_done(run.parent) < 24, "it went on, and did not end"

    assert started(path, run, log).wait(PATIENCE) == 0, log.read_text()[-3000:]
    assert differences(left_by(experiment, run, tokenizers), expected) == []


def steps_done(runs: Path) -> int:
    checkpoint = last(runs)
    assert checkpoint is not None
    return torch.load(checkpoint, weights_only=True)["global_step"]


def tiny_digest(folder: Path) -> str:
    """Of the cell on one device."""
    experiment = chain(folder)
    experiment.runtime.devices = "1"
    return experiment.digest()
