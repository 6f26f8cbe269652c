"""Nearest-code search: `nearest_code` against the dense formula of public code and against faiss.

    python -m benchmarks.search         # all three; the dense one takes 10 GB and minutes
    python -m benchmarks.search --only search_vs_faiss_d8 --runs 11

Prints both sides of each comparison, timed in turn, and as its last line `NAME RATIO`: how many times faster
`nearest_code` is. Every comparison first checks that the chosen codes are equally near, and stops with an error if not.
faiss builds its index outside the timing. Its speed depends strongly on its release, which is printed: on two cores
faiss 1.13.0 took 0.2 s at 8 dims and 1.3 s at 32, faiss 1.15.1 took 3 s and 0.6 s.

Where other processes want the same cores, set OMP_WAIT_POLICY=passive for both sides: threads that spin while
they wait for one that has lost its core cost seconds. On an idle machine leave it unset: waking them costs more.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.timing import Side, available_memory, paired, peak_memory, report
from lightning_modules.quantizers.search import nearest_code

Search = Callable[[], Tensor]
COMPARISONS = {"search_vs_dense_d8": 8, "search_vs_faiss_d8": 8, "search_vs_faiss_d32": 32}  # name: dims
DENSE_BYTES = 3 * 4  # a pair: the norms, the product and twice the product are alive together
TOLERANCE = 1e-5


def dense_search(z: Tensor, codebook: Tensor) -> Search:
    """The formula of public VQ code (taming-transformers): all N x K squared distances, then argmin."""

    def search() -> Tensor:
        norms = (z**2).sum(1, keepdim=True) + (codebook**2).sum(1)  # (N, K)
        return (norms - 2 * torch.einsum("nd,kd->nk", z, codebook)).argmin(1)

    return search


def faiss_search(z: Tensor, codebook: Tensor, threads: int) -> Search:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    print(f"faiss {faiss.__version__}, {faiss.get_compile_options().strip()}")
    return lambda: torch.from_numpy(index.search(z.numpy(), 1)[1][:, 0])


def check_distances(z: Tensor, codebook: Tensor, subject: Tensor, baseline: Tensor) -> None:
    """Both codes of every token are equally near in float64, relative to the distance, to `TOLERANCE`."""

    def squared_distance(indices: Tensor) -> Tensor:
        return (z.double() - codebook.double()[indices]).square().sum(1)

    reference = squared_distance(baseline)
    error = ((squared_distance(subject) - reference).abs() / reference).max().item()
    print(f"codes that differ: {int((subject != baseline).sum())} of {len(z)}; distances differ by {error:.1e} at most")
    if not error <= TOLERANCE:
        raise SystemExit(f"The nearest distances differ by {error:.1e}, more than {TOLERANCE}.")


def compare(name: str, num_tokens: int, num_codes: int, runs: int, dense_runs: int, threads: int) -> float:
    dim = COMPARISONS[name]
    print(f"\n{num_tokens:,} tokens x {num_codes:,} codes, {dim} dims, float32, {threads} threads")
    generator = torch.Generator().manual_seed(0)
    z, codebook = (torch.randn(n, dim, generator=generator) for n in (num_tokens, num_codes))
    subject: Search = partial(nearest_code, z, codebook)
    if dense := "dense" in name:
        needed = DENSE_BYTES * num_tokens * num_codes
        available = available_memory()
        if available is not None and available < needed * 1.1:
            raise SystemExit(
                f"{name} needs {needed / 1e9:.1f} GB of free memory, {available / 1e9:.1f} GB are there; "
                "lower --tokens or --codes, or leave it out with --only."
            )
        baseline = dense_search(z, codebook)
    else:
        baseline = faiss_search(z, codebook, threads)
    check_distances(z, codebook, subject(), baseline())  # the warm-up of both
    subject_seconds, baseline_seconds = paired(subject, baseline, dense_runs if dense else runs, warmup=0)
    return report(
        name,
        Side("nearest_code", subject_seconds, peak_memory(subject)),
        Side("dense formula" if dense else "faiss.IndexFlatL2", baseline_seconds, peak_memory(baseline)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--codes", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=7, help="timed calls of each side")
    parser.add_argument("--dense-runs", type=int, default=5, help="the same for the dense formula, about 7 s a call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = (arguments.tokens, arguments.codes, arguments.runs, arguments.dense_runs, arguments.threads)
    ratios = {name: compare(name, *sizes) for name in arguments.only}
    print()
    for name, ratio in ratios.items():
        print(f"{name} {ratio:.3g}")


if __name__ == "__main__":
    main()
