"""The fused search, by Triton's interpreter where there is no GPU, against a dense one in float64."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import torch
from lightning_modules.quantizers.search.fused import search_fused

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def search(z, codebook):
    return search_fused(z.to(DEVICE), codebook.to(DEVICE)).cpu()


torch.manual_seed(0)
for N, K, d in [(1, 1, 1), (70, 130, 8), (130, 1000, 8), (66, 300, 32), (5, 3000, 17), (40, 100, 768)]:
    z, codebook = torch.randn(N, d), torch.randn(K, d)
    indices, distances = search(z, codebook), torch.cdist(z.double(), codebook.double()).square()
    assert indices.shape == (N,) and indices.dtype == torch.int64
    torch.testing.assert_close(distances.gather(1, indices[:, None])[:, 0], distances.amin(1), rtol=1e-5, atol=1e-5)
strided = torch.randn(16, 50).T
assert torch.equal(search(strided, codebook[:, :16]), search(strided.contiguous(), codebook[:, :16].contiguous()))
lengths = torch.randn(500, 8) * torch.logspace(-2, 1, 500)[:, None]  # half the squared norm decides here
assert torch.equal(search(lengths, lengths), torch.arange(500))
equal = torch.ones(2000, 2)
equal[40::50] = 0.0  # in several blocks, and in several splits of the codes
assert (search(torch.zeros(7, 2), equal) == 40).all(), "of equal codes the lowest wins"
z = torch.randn(3, 8)
expected, z[1, 3] = search(z, lengths), float("nan")
assert search(z, lengths).tolist() == [expected[0], 0, expected[2]]
assert search(torch.empty(0, 8), lengths).shape == (0,)
print("all equal")
"""


def test_equals_a_dense_search(tmp_path: Path) -> None:
    """In a process of its own: Triton decides at its import whether it interprets."""
    pytest.importorskip("triton", reason="Triton has no build for this platform")
    path = tmp_path / "check.py"
    path.write_text(CODE)
    root = Path(__file__).parents[3]
    environment = os.environ | {
        "TRITON_INTERPRET": "0" if os.path.exists("/dev/nvidia0") else "1",
        "PYTHONPATH": str(root),
    }
    result = subprocess.run([sys.executable, path], env=environment, cwd=root, capture_output=True, text=True)
    assert result.stdout == "all equal\n", result.stderr


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_modules.quantizers.search.fused import FEW_DIMS, _nearest_kernel, block_of

pointers = {name: "*fp32" for name in ("tokens", "codes", "half_norms", "scores")} | {"indices": "*i32"}
for d, precision in ((8, "ieee"), (16, "ieee"), (64, "tf32x3"), (256, "ieee")):
    few, (tokens, codes, dims, warps) = d <= FEW_DIMS, block_of(d, d <= FEW_DIMS, precision)
    constants = {"IS_FEW_DIMS": few, "NUM_DIMS": d if few else 0, "TOKENS": tokens, "CODES": codes, "DIMS": dims}
    constants["PRECISION"] = precision
    numbers = dict.fromkeys(("N", "K", "d", "codes_a_split"), "i32")
    signature = pointers | numbers | dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=_nearest_kernel, signature=signature, constexprs=constants)
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    assert kernel.asm["cubin"]
print("compiled")
"""


def test_it_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Triton's compiler refuses some of what its interpreter takes; it needs no GPU."""
    triton = pytest.importorskip("triton", reason="Triton has no build for this platform")
    if not (Path(triton.__file__).parent / "backends/nvidia/bin").exists():
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    path = tmp_path / "build.py"
    path.write_text(COMPILE)
    root = Path(__file__).parents[3]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(root)}
    environment.pop("TRITON_INTERPRET", None)
    result = subprocess.run([sys.executable, path], env=environment, cwd=root, capture_output=True, text=True)
    assert result.stdout == "compiled\n", result.stderr
