"""Shared by the tests of resuming: real commands, killed where a test says, and what they leave, bit by bit."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.config.experiment import Experiment

PROJECT = Path(__file__).parents[2]
TIMES = {"images_per_second", "wall_seconds", "peak_memory_bytes", "environment"}  # of a record
Arm = list[Any]  # a target's N-th call, or half a save, and what is done there


class Result(NamedTuple):
    code: int  # negative: the signal that ended it
    output: str


class Driver:
    """Runs `python -m MODULE ARGUMENTS` in forks of one process; see `resume_driver`."""

    def __init__(self, folder: Path) -> None:
        self.log, self.num_jobs = folder, 0
        environment = os.environ | {
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONWARNINGS": "ignore",
        }
        script = [sys.executable, str(Path(__file__).with_name("resume_driver.py"))]
        self.process = subprocess.Popen(
            script, env=environment, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def start(self, module: str, *arguments: str, arm: list[Arm], settings: dict[str, Any], **more: Any) -> Any:
        if not self.num_jobs:
            assert self.answer() == "ready"
        self.num_jobs += 1
        assert self.process.stdin is not None
        job = {"module": module, "arguments": arguments, "log": str(self.log / f"{self.num_jobs}.log"), "arm": arm}
        self.process.stdin.write(json.dumps(job | {"set": settings, "file_size": 0} | more) + "\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def run(self, module: str, *arguments: str, arm: Arm | None = None, settings: Any = None, **more: Any) -> Result:
        code = self.start(module, *arguments, arm=[arm] if arm else [], settings=settings or {}, **more)
        return Result(code, (self.log / f"{self.num_jobs}.log").read_text())

    def wait(self, pid: int) -> int:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"wait": pid}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.answer())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def recipe(experiment: Experiment, path: Path) -> str:
    """The experiment as a file to name on the command line; JSON is YAML."""
    path.write_text(json.dumps(experiment.identity() | {"runtime": asdict(experiment)["runtime"]}))
    return str(path)


def differences(found: Any, expected: Any, where: str = "") -> list[str]:
    """Where two nested contents differ by a bit, a type or a key."""
    if isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor):
        return [] if found.dtype == expected.dtype and torch.equal(found, expected) else [where]
    if type(found) is not type(expected):
        return [where]
    if isinstance(found, dict):
        missing = [f"{where}.{key}" for key in found.keys() ^ expected.keys()]
        both = [(key, found[key], expected[key]) for key in found.keys() & expected.keys()]
        return missing + [d for key, a, b in both for d in differences(a, b, f"{where}.{key}")]
    if isinstance(found, (list, tuple)):
        pairs = enumerate(zip(found, expected, strict=False))
        inside = [d for i, (a, b) in pairs for d in differences(a, b, f"{where}.{i}")]
        return [where] * (len(found) != len(expected)) + inside
    return [] if found == expected else [where]


def final(run: Path) -> dict[str, Any]:
    """All of final.ckpt but the times and the text that names the command and the folders."""
    checkpoint = torch.load(run / "checkpoints/final.ckpt", weights_only=True)
    assert checkpoint["callbacks"].pop("Throughput")["wall_seconds"] > 0
    assert checkpoint.pop("configuration").startswith("# ")
    return checkpoint


def record(path: Path) -> dict[str, Any]:
    """All of a result record but the times."""
    return {key: value for key, value in json.loads(path.read_text()).items() if key not in TIMES}
