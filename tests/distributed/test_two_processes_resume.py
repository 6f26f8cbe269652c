"""Two processes that are killed or stopped together, and started again by the same command, end with the same bits."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import TinyExperiment
from resume_cases import PROJECT, differences, final, recipe, record
from vim_cases import tiny_vim

from experiments.config.experiment import Experiment

PATIENCE = 900  # seconds, on a machine that is busy with other things
OPTIONS = ("runtime.devices=2", "trainer.max_steps=24", "trainer.checkpoint_every=3", "trainer.weight_ema=0.5")


def started(path: str, run: Path, log: Path) -> subprocess.Popen[bytes]:
    """The command in a session of its own, so that a signal can reach both processes, as a batch system's does."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "experiments.train", path, "--run-dir", str(run)]
    with open(log, "ab") as output:
        return subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def interrupted(path: str, run: Path, log: Path, number: signal.Signals) -> int:
    """Sends the signal as soon as there is a checkpoint that was not there before; the status of the first process."""
    last = run / "checkpoints/last.ckpt"
    before = last.stat().st_mtime_ns if last.exists() else 0
    process = started(path, run, log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not last.exists() or last.stat().st_mtime_ns == before:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.005)
        os.killpg(process.pid, number)
        return process.wait(PATIENCE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def steps_done(run: Path) -> int:
    return torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]


@pytest.mark.parametrize("name", ["vqgan_ema", "vim"])
def test_two_processes_go_on_to_the_same_bits(tiny: TinyExperiment, tmp_path: Path, name: str) -> None:
    """The tokenizer has a game, revived codes and counts of an epoch; VIM draws masks of dropout on each rank."""
    if name == "vim":
        experiment: Experiment = tiny_vim(tiny, *OPTIONS, "model.keep_tokens=0.8", "model.gpt.dropout=0.2")
    else:
        game = "model.loss={adversarial: 0.1, discriminator_start: 2, adversarial_start: 4}"
        experiment = tiny(name, *OPTIONS, game, "model.quantizer.dead_code_threshold=0.9", "data.flip=true")
    path, log, killed = recipe(experiment, tmp_path / "recipe.yaml"), tmp_path / "log", tmp_path / "killed"
    result = Path(experiment.runtime.output_dir) / f"records/{experiment.digest()}.shapes.json"

    assert started(path, tmp_path / "straight", log).wait(PATIENCE) == 0, log.read_text()[-3000:]
    expected = final(tmp_path / "straight"), record(result)
    result.unlink()

    assert interrupted(path, killed, log, signal.SIGKILL) == -signal.SIGKILL
    first = steps_done(killed)
    assert interrupted(path, killed, log, signal.SIGTERM) == 128 + signal.SIGTERM, log.read_text()[-3000:]
    assert first < steps_done(killed) < 24, "it went on, and did not end"
    assert not result.exists()

    assert started(path, killed, log).wait(PATIENCE) == 0, log.read_text()[-3000:]
    assert differences((final(killed), record(result)), expected) == []
