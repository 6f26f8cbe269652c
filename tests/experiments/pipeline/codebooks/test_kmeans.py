"""Selection and k-means over features on disk: against in-memory code and faiss, stopped and continued, in bounds."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.timing import peak_memory
from experiments.pipeline.codebooks import kmeans
from experiments.pipeline.codebooks.features import Features
from experiments.pipeline.codebooks.kmeans import State, StateFile, load_state, make_table, new_state, split
from lightning_modules.quantizers import CodebookSource, nearest_code

CPU = torch.device("cpu")


def on_disk(folder: Path, z: Tensor, labels: np.ndarray | None = None) -> Features:
    folder.mkdir(exist_ok=True)
    np.save(folder / "features.npy", z.numpy())
    np.save(folder / "labels.npy", np.zeros(len(z), np.int64) if labels is None else labels)
    return Features(folder)


def blobs(n: int, dims: int = 8, centres: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(centres, dims, generator=generator) * 4
    return middle[torch.randint(centres, (n,), generator=generator)] + torch.randn(n, dims, generator=generator)


def whole(n: int, k: int) -> list[kmeans.Part]:
    return [(np.arange(n), k)]


def inertia(z: Tensor, table: Tensor) -> float:
    return float(torch.cdist(z.double(), table.double()).amin(1).square().sum())


def in_memory(z: Tensor, k: int, source: CodebookSource, generator: torch.Generator, chunk: int) -> Tensor:
    """The same selection with everything in memory, as it was done before features were streamed."""
    centres = z[torch.randperm(len(z), generator=generator)[:k]]
    for _ in range(source.iterations if source.method == "kmeans" else 0):
        sums, counts = torch.zeros_like(centres), torch.zeros(len(centres))
        for part in z.split(chunk):
            indices = nearest_code(part, centres)
            sums.index_add_(0, indices, part)
            counts += torch.bincount(indices, minlength=k)
        empty = counts == 0
        sums[empty] = z[torch.randint(len(z), (int(empty.sum()),), generator=generator)]
        centres = sums / counts.clamp_min(1).unsqueeze(-1)
    return centres


# ---- the numbers


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    z = blobs(300)
    indices = np.array([299, 5, 6, 7, 0, 5, 120, 119, 8])
    assert torch.equal(on_disk(tmp_path, z).rows(indices), z[torch.from_numpy(indices)])
    assert on_disk(tmp_path, z).rows(np.array([], np.int64)).shape == (0, 8)


@pytest.mark.parametrize("method", ["random", "kmeans"])
@pytest.mark.parametrize("per_class", [True, False])
def test_equals_the_in_memory_selection_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, per_class: bool
) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", 64)
    z, labels = blobs(1000).round(decimals=1), np.arange(1000) * 7 % 3
    z[400:] = z[400]  # so many equal rows that clusters come out empty
    source = CodebookSource(method=method, per_class=per_class, iterations=4, seed=3)
    state = new_state("x", source.seed)
    table = make_table(on_disk(tmp_path, z, labels), split(labels, 41, per_class), source, state, CPU)
    generator = torch.Generator().manual_seed(3)
    parts = [(labels == c, n) for c, n in zip(range(3), (14, 14, 13), strict=True)]
    parts = parts if per_class else [(labels >= 0, 41)]
    expected = torch.cat([in_memory(z[torch.from_numpy(rows)], n, source, generator, 64) for rows, n in parts])
    assert torch.equal(table, expected)
    assert (state.reseeded > 0) == (method == "kmeans")
    assert state.passes == (0 if method == "random" else 4 * len(parts))


def test_inertia_is_that_of_faiss_from_the_same_seeds(tmp_path: Path) -> None:
    faiss = pytest.importorskip("faiss")
    z = blobs(4000, 16, 40)
    source = CodebookSource(iterations=8, seed=1)
    state = new_state("x", source.seed)
    table = make_table(on_disk(tmp_path, z), whole(len(z), 40), source, state, CPU)
    assert state.reseeded == 0, "else the two start empty clusters again in different places"
    seeds = z[torch.randperm(len(z), generator=torch.Generator().manual_seed(1))[:40]]
    clusters = faiss.Kmeans(16, 40, niter=8, min_points_per_centroid=1, max_points_per_centroid=len(z))
    clusters.train(z.numpy(), init_centroids=seeds.numpy())
    assert inertia(z, table) == pytest.approx(inertia(z, torch.from_numpy(clusters.centroids)), rel=1e-3)
    assert inertia(z, table) < 0.9 * inertia(z, seeds)
    torch.testing.assert_close(table, torch.from_numpy(clusters.centroids), rtol=1e-3, atol=1e-3)


def test_one_pass_is_the_mean_of_each_cluster_and_counts_the_inertia(tmp_path: Path) -> None:
    z = blobs(300, 5)
    state = new_state("x", 0)
    table = make_table(on_disk(tmp_path, z), whole(300, 7), CodebookSource(iterations=1), state, CPU)
    seeds = z[torch.randperm(300, generator=torch.Generator().manual_seed(0))[:7]]
    nearest = torch.cdist(z, seeds).argmin(1)
    torch.testing.assert_close(table, torch.stack([z[nearest == k].mean(0) for k in range(7)]))
    assert state.total_inertia == pytest.approx(inertia(z, seeds))


def test_it_stops_when_nothing_changes(tmp_path: Path) -> None:
    features, parts = on_disk(tmp_path, blobs(500)), whole(500, 6)
    state = new_state("x", 0)
    table = make_table(features, parts, CodebookSource(iterations=1000), state, CPU)
    assert 2 < state.passes < 100
    one_less = make_table(features, parts, CodebookSource(iterations=state.passes - 1), new_state("x", 0), CPU)
    assert torch.equal(table, one_less), "its last pass changed nothing"
    two_less = make_table(features, parts, CodebookSource(iterations=state.passes - 2), new_state("x", 0), CPU)
    assert not torch.equal(table, two_less), "and the one before did"


@pytest.mark.parametrize(("tolerance", "passes"), [(0.99, 2), (0.0, 6)])
def test_it_stops_when_a_pass_gains_little(tmp_path: Path, tolerance: float, passes: int) -> None:
    source, state = CodebookSource(iterations=6, tolerance=tolerance), new_state("x", 0)
    make_table(on_disk(tmp_path, blobs(3000, centres=3)), whole(3000, 20), source, state, CPU)
    assert state.passes == passes


# ---- stopped and continued


class Killed(Exception):
    pass


@pytest.mark.parametrize("per_class", [True, False])
def test_continues_to_the_same_bits_from_any_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_class: bool
) -> None:
    monkeypatch.setattr(kmeans, "CHUNK", 100)
    monkeypatch.setattr(kmeans, "SAVE_SECONDS", 0.0)
    z, labels = blobs(520), np.arange(520) % 2
    z[200:] = z[200]  # clusters come out empty: random numbers are drawn on the way
    features, parts = on_disk(tmp_path, z, labels), split(labels, 61, per_class)
    source, straight = CodebookSource(iterations=3), new_state("x", 0)
    table = make_table(features, parts, source, straight, CPU)
    assert straight.reseeded > 0

    keep = StateFile(tmp_path / "state.partial")
    for stop in range(1, 19):  # of 18 chunks: 6 a pass
        saves = 0

        def save(state: State, stop: int = stop) -> None:
            nonlocal saves
            saves += 1
            keep(state)
            if saves == stop:
                raise Killed

        with pytest.raises(Killed):
            make_table(features, parts, source, new_state("x", 0), CPU, save)
        state = load_state(keep.path, "x", CPU)
        assert torch.equal(make_table(features, parts, source, state, CPU), table)
        assert state.statistics() == straight.statistics()


def test_a_killed_process_leaves_a_state_to_continue(tmp_path: Path) -> None:
    """SIGKILL between two saves, in a process of its own."""
    z = blobs(2000)
    features, source = on_disk(tmp_path, z), CodebookSource(iterations=3)
    script = f"""
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from experiments.pipeline.codebooks import kmeans
from experiments.pipeline.codebooks.features import Features
from lightning_modules.quantizers import CodebookSource
import numpy as np
kmeans.CHUNK, kmeans.SAVE_SECONDS = 500, 0.0
keep, saves = kmeans.StateFile(Path({str(tmp_path / "state.partial")!r})), 0
def save(state):
    global saves
    saves += 1
    if saves == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    keep(state)
features = Features(Path({str(tmp_path)!r}))
kmeans.make_table(features, [(np.arange(2000), 50)], CodebookSource(iterations=3), kmeans.new_state("x", 0),
                  torch.device("cpu"), save)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    state = load_state(tmp_path / "state.partial", "x", CPU)
    assert (state.iteration, state.row) == (1, 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans, "CHUNK", 500)
        continued = make_table(features, whole(2000, 50), source, state, CPU)
        assert torch.equal(continued, make_table(features, whole(2000, 50), source, new_state("x", 0), CPU))


def test_a_state_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans, "SAVE_SECONDS", 0.0)
    keep = StateFile(tmp_path / "state.partial")
    keep(new_state("mine", 0))
    assert load_state(keep.path, "mine", CPU).row == 0
    with pytest.raises(ValueError, match=r"state\.partial: of another codebook"):
        load_state(keep.path, "yours", CPU)
    for content in (b"", b"no state", keep.path.read_bytes()[:-200]):
        keep.path.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.partial: not readable.*delete it"):
            load_state(keep.path, "mine", CPU)
    torch.save({"other": 1}, keep.path)
    with pytest.raises(ValueError, match=r"state\.partial: not readable"):
        load_state(keep.path, "mine", CPU)


@pytest.mark.parametrize("method", ["random", "kmeans"])
def test_features_that_are_not_finite_are_named(tmp_path: Path, method: str) -> None:
    z = blobs(100)
    z[40, 2] = math.nan
    source = CodebookSource(method=method)
    with pytest.raises(ValueError, match=r"features\.npy: holds values that are not finite"):
        make_table(on_disk(tmp_path, z), whole(100, 100), source, new_state("x", 0), CPU)


# ---- memory


@pytest.mark.parametrize(("method", "per_class"), [("kmeans", False), ("kmeans", True), ("random", False)])
def test_memory_does_not_follow_the_number_of_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, per_class: bool
) -> None:
    """128 MB of features, of which a chunk is 1 MB."""
    monkeypatch.setattr(kmeans, "CHUNK", 4096)
    N, C = 500_000, 64
    rng, labels = np.random.default_rng(0), np.arange(N) // 16 % 2  # 16 features an image
    np.save(tmp_path / "labels.npy", labels)
    with open(tmp_path / "features.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (N, C)})
        for _ in range(20):
            file.write(rng.standard_normal((N // 20, C), np.float32).tobytes())
    features, source = Features(tmp_path), CodebookSource(method=method, iterations=1)

    def build(rows: int) -> None:
        parts = split(features.labels()[:rows], 16, per_class)
        make_table(features, parts, source, new_state("x", 0), CPU)

    build(20_000)  # loads code and thread pools
    streamed, at_once = peak_memory(lambda: build(N)), peak_memory(lambda: features.rows(np.arange(N)))
    if streamed is None or at_once is None:
        pytest.skip("needs Linux's /proc to measure memory")
    assert at_once > N * C * 4, "so the measure would see features that are held"
    assert streamed < 24 * N + 2**25, f"{streamed / 2**20:.0f} MiB"
