"""Health of a run: finite weights, the last good checkpoint, peak memory, and the memory of the machine."""

import gc
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_modules.finite import ADVICE, first_not_finite, settle
from lightning_modules.pretrained import load_checkpoint


class FiniteWeights(Callback):
    """Callback: neither saves nor validates weights that are not finite, so every checkpoint can be continued."""

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.check(trainer, module)

    @staticmethod
    def check(trainer: L.Trainer, module: L.LightningModule) -> None:
        """Raises FloatingPointError that names the step and the loss, or the weights."""
        settle(module)
        if name := first_not_finite(module.state_dict()):
            raise FloatingPointError(f"step {trainer.global_step}: the weights '{name}' are not finite; {ADVICE}")


@contextmanager
def naming_last_checkpoint(checkpoints: Path) -> Iterator[None]:
    """Adds to a FloatingPointError which checkpoint is the last good one."""
    try:
        yield
    except FloatingPointError as error:
        steps = {path: load_checkpoint(path)["global_step"] for path in checkpoints.glob("*.ckpt")}
        if not steps:
            raise FloatingPointError(f"{error}; no checkpoint was saved before it") from None
        last = max(steps, key=steps.__getitem__)
        raise FloatingPointError(f"{error}; the last good checkpoint is {last}, of step {steps[last]}") from None


def reset_peak_memory() -> None:
    """Starts `peak_memory_bytes` anew, so that a run of a sweep does not count the peaks of earlier runs."""
    with suppress(OSError):  # not Linux, or not allowed: then the peak is that of the process
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_bytes() -> int:
    """Peak resident memory of this process since `reset_peak_memory`; loader processes are not in it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_name(device: torch.device) -> str:
    """The model of a GPU; of other devices the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@contextmanager
def releasing_memory() -> Iterator[None]:
    """Gives back what a run leaves behind in its process, for the next one or for others: memory, compiled code."""
    try:
        yield
    finally:
        gc.collect()
        if "torch._inductor.compile_fx" in sys.modules:  # something has been compiled
            torch.compiler.reset()  # code that many models share would reach the limit of its recompilations
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def peak_device_memory_bytes() -> int:
    """Peak of torch's allocations on this process's GPU since `reset_peak_memory`; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or less in a container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        with suppress(OSError, ValueError):  # not there, or "max"
            limits.append(int((CGROUP / name).read_text()))
    return min(limits)


CGROUP = Path("/sys/fs/cgroup")
