"""Random selection and k-means over features that do not fit in memory, resumable.

Lloyd's algorithm, full passes: each streams the features once, assigns them with `nearest_code` (never an N x K matrix)
and adds them up by code. Seeds are random rows: k-means++ would need a pass for each of 100,000 codes. An empty cluster
starts again at a random row, as in kmeans_pytorch, with which the official code of paper B clusters.

Memory: two (K, C) tables, a chunk of CHUNK rows, and 24 bytes a feature for row numbers, whatever C is.
Shapes: N features of C channels in all, n of a part, k codes of a part.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.pipeline.codebooks.features import Features
from experiments.runtime.files import PARTIAL, replacing
from experiments.runtime.progress import progress
from experiments.runtime.signals import StopRequest
from lightning_modules.archives import readable
from lightning_modules.checks import require
from lightning_modules.quantizers import CodebookSource, nearest_code

CHUNK = 16384  # rows read and assigned at a time: 50 MB at 768 channels
SAVE_SECONDS = 120.0  # of work that a kill may cost

Part = tuple[np.ndarray, int]  # row numbers (n,) and k


@dataclass
class State:
    """The progress of a selection: all that is needed to continue to the same result."""

    identity: str
    generator: Tensor  # of random numbers
    finished: list[Tensor] = field(default_factory=list)  # (k, C) of each part that is done
    centres: Tensor | None = None  # (k, C) of the part in work
    sums: Tensor | None = None  # (k, C) and
    counts: Tensor | None = None  # (k,) of the pass in work
    inertia: float = 0.0  # sum of squared distances of the pass in work, and
    last_inertia: float = math.inf  # of the pass before
    row: int = 0  # rows of the part that the pass has done
    iteration: int = 0  # passes of the part
    total_inertia: float = 0.0  # of the finished parts, each at its last pass
    passes: int = 0  # of all parts
    reseeded: int = 0  # empty clusters, all passes and parts

    def statistics(self) -> dict[str, str]:
        """For the codebook's metadata."""
        values = {"passes": self.passes, "reseeded": self.reseeded, "inertia": self.total_inertia}
        return {key: str(value) for key, value in values.items()}


def new_state(identity: str, seed: int) -> State:
    return State(identity, torch.Generator().manual_seed(seed).get_state())


class StateFile:
    """Keeps the state when SAVE_SECONDS have gone by, or `stop` has had a signal, which then ends the command.

    Atomic: a kill leaves the old state or the new one.
    """

    def __init__(self, path: Path, stop: StopRequest | None = None) -> None:
        self.path, self.stop, self.saved = path, stop or StopRequest(), time.monotonic()

    def __call__(self, state: State) -> None:
        if self.stop.number or time.monotonic() - self.saved >= SAVE_SECONDS:
            with replacing(self.path) as file:
                torch.save(vars(state), file)
            self.saved = time.monotonic()
            self.stop.check(f"the clustering, {state.passes} whole passes, is in {self.path}")

    def remove(self) -> None:
        for path in (self.path, self.path.with_name(self.path.name + PARTIAL)):
            path.unlink(missing_ok=True)


def load_state(path: Path, identity: str, device: torch.device) -> State:
    """Raises ValueError that names the file when it is damaged or of another codebook."""
    with readable(path, "; delete it: clustering starts again"):
        state = State(**torch.load(path, map_location="cpu", weights_only=True))
    require(state.identity == identity, f"{path}: of another codebook; delete it or choose another --out")
    for name in ("centres", "sums", "counts"):
        if (value := getattr(state, name)) is not None:
            setattr(state, name, value.to(device))
    return state


def split(labels: np.ndarray, size: int, per_class: bool) -> list[Part]:
    """One part, or one a class, whose numbers of codes differ by at most one.

    Raises ValueError when a class has fewer features than codes.
    """
    classes, counts = np.unique(labels, return_counts=True) if per_class else (np.array([]), np.array([]))
    if not 1 < len(classes) <= size:
        return [(np.arange(len(labels)), size)]
    sizes = [size // len(classes) + (i < size % len(classes)) for i in range(len(classes))]
    for c, count, n in zip(classes, counts, sizes, strict=True):
        require(n <= count, f"class {c} has {count} features, fewer than its {n} codes: set source.per_class=false")
    rows = np.split(labels.argsort(kind="stable"), counts.cumsum()[:-1])
    return list(zip(rows, sizes, strict=True))


def make_table(
    features: Features,
    parts: list[Part],
    source: CodebookSource,
    state: State,
    device: torch.device,
    save: Callable[[State], None] = lambda _: None,
) -> Tensor:
    """The (K, C) table: of each part (rows, k), k of its rows at random, or k cluster centres.

    `save(state)` is called after every chunk; a run that starts from a saved state gives the same table to the last
    bit on a CPU, and on a GPU as `sum_dtype` says. Raises ValueError when a feature is not finite.
    """
    generator = torch.Generator()
    generator.set_state(state.generator)
    iterations = source.iterations if source.method == "kmeans" else 0
    pass_rows = [len(rows) * iterations for rows, _ in parts]
    now = len(state.finished)
    done = sum(pass_rows[:now]) + (len(parts[now][0]) * state.iteration + state.row if now < len(parts) else 0)
    with progress("feature", sum(pass_rows), done) as show:
        for rows, k in parts[now:]:
            if state.centres is None:
                seeds = torch.randperm(len(rows), generator=generator)[:k].numpy()
                state.centres = require_finite(features.rows(rows[seeds]), features).to(device)
                state.generator = generator.get_state()
            is_done = False
            while not is_done and state.iteration < iterations:
                one_pass(features, rows, state, save, show)
                is_done = move_centres(features, rows, state, generator, source.tolerance)
            show((iterations - state.iteration) * len(rows))
            state.finished.append(state.centres.cpu())
            state.total_inertia += state.last_inertia if state.iteration else 0
            state.centres, state.iteration, state.last_inertia = None, 0, math.inf
    return torch.cat(state.finished)


def require_finite(z: Tensor, features: Features) -> Tensor:
    if not torch.isfinite(z).all():
        raise ValueError(f"{features.path}: holds values that are not finite; delete {features.path.parent}")
    return z


def one_pass(
    features: Features, rows: np.ndarray, state: State, save: Callable[[State], None], show: Callable[[int], None]
) -> None:
    """Adds each row to the sum and the count of its nearest centre; goes on at `state.row`."""
    centres = state.centres
    assert centres is not None
    if state.sums is None or state.counts is None:
        state.sums = torch.zeros_like(centres, dtype=sum_dtype(centres.device))
        state.counts = torch.zeros(len(centres), dtype=torch.int64, device=centres.device)
    for start in range(state.row, len(rows), CHUNK):
        z = require_finite(features.rows(rows[start : start + CHUNK]), features).to(centres.device)  # (B, C)
        indices = nearest_code(z, centres)  # (B,)
        state.sums.index_add_(0, indices, z.to(state.sums.dtype))
        state.counts += torch.bincount(indices, minlength=len(centres))
        state.inertia += float((z - centres[indices]).square_().sum(dtype=torch.float64))
        state.row += len(z)
        show(len(z))
        save(state)


def sum_dtype(device: torch.device) -> torch.dtype:
    """A GPU adds in no fixed order: in float64 the order is lost when the sum is rounded, but for rare ties."""
    return torch.float32 if device.type == "cpu" else torch.float64


def move_centres(
    features: Features, rows: np.ndarray, state: State, generator: torch.Generator, tolerance: float
) -> bool:
    """Ends a pass: centres become means, empty clusters random rows. True when another pass would change nothing,
    or the relative drop of inertia is at most `tolerance` (0: never for that reason)."""
    old, sums, counts = state.centres, state.sums, state.counts
    assert old is not None and sums is not None and counts is not None
    empty = (counts == 0).nonzero().flatten()
    chosen = torch.randint(len(rows), (len(empty),), generator=generator).numpy()
    state.centres = sums.div_(counts.clamp_min(1).unsqueeze(-1)).float()
    state.centres[empty] = features.rows(rows[chosen]).to(old.device)
    state.generator = generator.get_state()
    is_settled = tolerance > 0 and state.last_inertia - state.inertia <= tolerance * state.last_inertia < math.inf
    is_done = len(empty) == 0 and (is_settled or torch.equal(state.centres, old))
    state.reseeded += len(empty)
    state.passes += 1
    state.iteration += 1
    state.last_inertia, state.inertia, state.row, state.sums, state.counts = state.inertia, 0.0, 0, None, None
    return is_done
