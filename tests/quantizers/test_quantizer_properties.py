"""What holds for any latents: hypothesis draws sizes, scales, duplicates, layouts and precisions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_quantizers import KINDS, D, make
from torch import Tensor

from lightning_modules.quantizers.search import cells, nearest_code
from lightning_modules.quantizers.search.tiled import search_tiled

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25, database=None)
repeatable = settings.get_profile("repeatable")
SCALES = [0.0, 1e-18, 1e-6, 1.0, 1e3, 1e6]


@st.composite
def vectors(draw: st.DrawFn, num: st.SearchStrategy[int], dim: int, copies: bool = True) -> Tensor:
    """(N, dim) normal numbers of some scale; some rows may be copies of others, and the layout need not be dense."""
    size, scale = draw(num), draw(st.sampled_from(SCALES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = scale * torch.randn(size, dim, generator=generator)
    if copies and draw(st.booleans()):
        values = values[torch.randint(size, (size,), generator=generator)]
    layout = draw(st.sampled_from(["dense", "transposed", "strided"]))
    if layout == "transposed":
        values = values.T.contiguous().T
    elif layout == "strided":
        values = torch.stack([values, -values], 1).flatten(1)[:, :dim]
    return values.bfloat16() if draw(st.booleans()) else values


def distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared, (N, K), in float64."""
    return (z.double()[:, None] - codebook.double()).square().sum(2)


@given(st.data())
@repeatable
def test_no_code_is_nearer_than_the_one_found(data: st.DataObject) -> None:
    """Nearest by brute force up to rounding, which is relative to the norms; of equal codes the first."""
    dim = data.draw(st.sampled_from([1, 2, 7, 16, 33]))
    z = data.draw(vectors(st.sampled_from([1, 3, 50, 600]), dim))
    codebook = data.draw(vectors(st.sampled_from([1, 2, 40, 700]), dim))
    indices = nearest_code(z, codebook)
    assert indices.dtype == torch.int64 and indices.shape == (len(z),)
    assert int(indices.min()) >= 0 and int(indices.max()) < len(codebook)
    all_of = distances(z, codebook)
    found, smallest = all_of.gather(1, indices[:, None])[:, 0], all_of.min(1).values
    norms = z.double().square().sum(1) + codebook.double().square().sum(1).max()
    assert bool((found <= smallest + 4e-6 * norms).all())


@given(st.data())
@repeatable
def test_skipping_cells_finds_what_comparing_all_finds(data: st.DataObject) -> None:
    z = data.draw(vectors(st.sampled_from([1, 40, 300]), 4))
    codebook = data.draw(vectors(st.sampled_from([1, 33, 900]), 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "CODES_A_CELL", 8)
        patch.setattr(cells, "MAX_SHARE", 2.0)  # also where little can be skipped
        indices = cells.search_cells(z.float(), codebook.float(), cells.Partition())
    assert indices is not None
    all_of = distances(z, codebook)
    chosen = [all_of.gather(1, i[:, None]) for i in (indices, search_tiled(z.float(), codebook.float()))]
    norms = z.double().square().sum(1, keepdim=True) + codebook.double().square().sum(1).max()
    assert int(indices.min()) >= 0 and int(indices.max()) < len(codebook)
    assert bool(((chosen[0] - chosen[1]).abs() <= 4e-6 * norms).all())


@given(st.integers(2, 40), st.integers(0, 2**32))
@repeatable
def test_of_equal_codes_the_first_is_found(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    few = torch.randn(size, 5, generator=generator)
    codebook = few[torch.randint(size, (4 * size,), generator=generator)]
    first = (codebook[:, None] == codebook).all(2).int().argmax(1)
    assert torch.equal(nearest_code(codebook, codebook), first)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(repeatable, max_examples=12)
def test_decoding_the_indices_is_the_forward_pass(kind: str, data: st.DataObject) -> None:
    """Bit for bit; each latent's code depends on that latent alone, and coding a code gives it back."""
    quantizer = make(kind).eval()
    z = data.draw(vectors(st.sampled_from([1, 2, 30]), D))
    output = quantizer(z)
    assert output.indices.shape == (len(z),) and output.quantized.shape == (len(z), D)
    assert int(output.indices.min()) >= 0 and int(output.indices.max()) < quantizer.codebook_size
    assert torch.equal(output.quantized, quantizer.lookup(output.indices))
    assert torch.isfinite(output.quantized).all() and torch.isfinite(output.loss)
    order = torch.randperm(len(z))
    assert torch.equal(quantizer(z[order]).indices, output.indices[order])
    if kind != "fsq":  # which bounds its latents by tanh, and a code is not bounded again
        assert torch.equal(quantizer(output.quantized).quantized, output.quantized)


@pytest.mark.parametrize("kind", KINDS)
@given(st.data())
@settings(repeatable, max_examples=8)
def test_training_keeps_gradients_and_state_finite(kind: str, data: st.DataObject) -> None:
    quantizer = make(kind).train()
    z = data.draw(vectors(st.sampled_from([1, 30]), D)).float().requires_grad_()
    output = quantizer(z)
    (output.quantized.sum() + output.loss).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()
    assert all(torch.isfinite(v).all() for v in quantizer.state_dict().values() if v.is_floating_point())
