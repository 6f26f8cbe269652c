"""Fair comparisons of two functions: timed in turn, with the memory each one takes."""

import ctypes
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")
MIB = 2**20


@dataclass
class Side:
    """One side of a comparison."""

    label: str
    seconds: Sequence[float]
    memory: int | None = None  # peak bytes beyond what was held before the call


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def in_turn(functions: Sequence[Callable[[], object]], runs: int, warmup: int = 1) -> list[list[float]]:
    """Seconds of `runs` calls of each, alternating a b a b, so that a slow spell of the machine hits all."""
    times: list[list[float]] = [[] for _ in functions]
    for run in range(warmup + runs):
        for function, seconds in zip(functions, times, strict=True):
            elapsed = _seconds(function)
            if run >= warmup:
                seconds.append(elapsed)
    return times


def paired(
    a: Callable[[], object], b: Callable[[], object], runs: int = 5, warmup: int = 1
) -> tuple[list[float], list[float]]:
    """`in_turn` of two."""
    first, second = in_turn([a, b], runs, warmup)
    return first, second


def _bytes(path: Path, field: str) -> int:
    """A field of a table of /proc whose lines are `Field:  123 kB`."""
    for line in path.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no field {field!r}.")


def available_memory() -> int | None:
    """Bytes that can be allocated without swapping; None where the system cannot tell (not Linux)."""
    return _bytes(MEMINFO, "MemAvailable") if MEMINFO.exists() else None


def peak_memory(function: Callable[[], object], cuda: bool = False) -> int | None:
    """Peak bytes that one call takes beyond what the process held before it.

    With `cuda` the CUDA allocator's peak. Else the kernel's own peak of the resident set, reset before the call;
    memory that the C library kept from earlier calls is handed back first, so that its reuse is counted too. Call
    the function once before, or the code and thread pools it loads are counted as well. None where the system
    cannot tell (not Linux).
    """
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    if not STATUS.exists():
        return None
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # glibc
        libc.malloc_trim(0)
    before = _bytes(STATUS, "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): 5 resets VmHWM to VmRSS
    function()
    return max(0, _bytes(STATUS, "VmHWM") - before)


def report(name: str, subject: Side, baseline: Side) -> float:
    """Prints both sides, then `NAME RATIO`, the baseline's median time over the subject's. Returns the ratio."""
    print(f"{'':24}{'median':>13}{'min':>13}{'max':>13}{'runs':>6}{'memory':>12}")
    for side in (baseline, subject):
        milliseconds = [1000 * value for value in side.seconds]
        memory = "-" if side.memory is None else f"{side.memory / MIB:,.0f} MiB"
        print(
            f"{side.label:24}{statistics.median(milliseconds):10,.1f} ms{min(milliseconds):10,.1f} ms"
            f"{max(milliseconds):10,.1f} ms{len(milliseconds):6}{memory:>12}"
        )
    ratio = statistics.median(baseline.seconds) / statistics.median(subject.seconds)
    print(f"{name} {ratio:.3g}", flush=True)
    return ratio
