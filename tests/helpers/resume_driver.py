"""Runs the suite's commands in forks of one process that has imported everything: killing them costs nothing.

Reads jobs from stdin, a JSON object a line, and answers each with a line; see `resume_cases.Driver`.
"""

import functools
import importlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import experiments.build_codebook
import experiments.pipeline.codebooks.extraction
import experiments.pipeline.training
import experiments.tokenize
import experiments.train
from lightning_modules.losses import perceptual
from lightning_modules.metrics import extractors, fidelity
from lightning_modules.networks.encoders import load_encoder

torch.set_num_threads(1)


@functools.cache
def load_once(name: str, input_size: int = 224) -> Any:
    with torch.random.fork_rng():
        return load_encoder(name, input_size)


def quick_distance(first: dict[str, Any], second: dict[str, Any], *_: Any, **__: Any) -> dict[str, float]:
    """In place of FID, the root of whose matrices takes a second a validation."""
    return {"frechet_inception_distance": float(np.square(first["mu"] - second["mu"]).sum())}


def owner_of(target: str) -> tuple[Any, str]:
    """ "package.module:Class.method" -> the class and "method"."""
    module, path = target.split(":")
    *parents, name = path.split(".")
    return functools.reduce(getattr, parents, importlib.import_module(module)), name


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pause(folder: str) -> None:
    """Says that it has come here, and waits for the word to go on."""
    (Path(folder) / "paused").touch()
    while not (Path(folder) / "go").exists():
        time.sleep(0.05)


ACTIONS: dict[str, Callable[..., Any]] = {
    "kill": kill,
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
    "pause": pause,
}


def arm(target: str, call: int, do: str, *arguments: str) -> None:
    """At its `call`-th call, `target` first does what the word says."""
    owner, name = owner_of(target)
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def armed(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            ACTIONS[do](*arguments)
        return original(*args, **kwargs)

    setattr(owner, name, armed)


def arm_save(call: int) -> None:
    """The `call`-th checkpoint or state is half written when the process is killed."""
    save, calls = torch.save, 0

    def half(content: Any, file: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        calls += str(getattr(file, "name", "")).endswith(".partial")
        if calls != call:
            return save(content, file, *args, **kwargs)
        save(content, buffer := io.BytesIO())
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        return kill()

    torch.save = half


def child(job: dict[str, Any]) -> int:
    with open(job["log"], "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if job["file_size"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["file_size"],) * 2)
    for target, value in job["set"].items():
        setattr(*owner_of(target), value)
    for one in job["arm"]:
        arm_save(one[1]) if one[0] == "half a save" else arm(*one)
    sys.argv = [job["module"], *job["arguments"]]
    try:
        importlib.import_module(job["module"]).main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def main() -> None:
    for module in (extractors, perceptual, experiments.pipeline.codebooks.extraction):
        module.load_encoder = load_once  # type: ignore[attr-defined]
    load_once("efficientnet-lite0", 32)
    fidelity.fid_statistics_to_metric = quick_distance
    experiments.pipeline.training.print_summary = lambda *_: None  # it traces the model, for a second
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            pid = job["wait"]
        elif not (pid := os.fork()):
            code = 1
            try:
                code = child(job)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        if job.get("background"):
            print(json.dumps(pid), flush=True)
        else:
            print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)


if __name__ == "__main__":
    main()
