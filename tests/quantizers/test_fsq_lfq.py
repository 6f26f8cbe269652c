"""FSQ and LFQ, whose codebooks are implicit: numbers by hand, formulas written out, and a public implementation.

What holds for every quantizer is in test_quantizers.py. Shapes: N latents of d dimensions, K codes, L levels.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ as PublicFSQ
from vector_quantize_pytorch import LFQ as PublicLFQ

from lightning_modules.quantizers import FSQ, LFQ, FSQConfig, LFQConfig


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- FSQ


def fsq(*levels: int) -> FSQ:
    return FSQ(FSQConfig(levels=list(levels)), math.prod(levels), len(levels))


def test_fsq_by_hand() -> None:
    """L = 5 and 4. Level edges of L = 5: tanh(z) 1.998 = 0.5 and 1.5, so z = 0.2557 and 0.9743."""
    quantizer = fsq(5, 4)
    first = torch.tensor([-9.0, -0.98, -0.97, -0.26, -0.25, 0.25, 0.26, 0.97, 0.98, 9.0])
    output = quantizer(torch.stack([first, torch.zeros(10)], -1))
    assert output.quantized[:, 0].tolist() == [-1, -1, -0.5, -0.5, 0, 0, 0.5, 0.5, 1, 1]
    assert output.quantized[:, 1].unique().tolist() == [0.0], "zero is a level of an even L"
    # Digits 0 to 4 of the first dimension, and 2 of the second, which counts 5 each.
    assert output.indices.tolist() == [10, 10, 11, 11, 12, 12, 13, 13, 14, 14]
    # L = 4 has -1, -0.5, 0 and 0.5: tanh(z + 0.3468) 1.4985 - 0.5 = -1.5, -0.5 and 0.5 at z = -1.15, -0.35 and 0.46.
    second = torch.tensor([-9.0, -1.16, -1.14, -0.36, -0.34, 0.45, 0.47, 9.0])
    output = quantizer(torch.stack([torch.zeros(8), second], -1))
    assert output.quantized[:, 1].tolist() == [-1, -1, -0.5, -0.5, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize(("size", "levels"), [
    (240, [8, 6, 5]), (1000, [8, 5, 5, 5]), (4375, [7, 5, 5, 5, 5]), (15360, [8, 8, 8, 6, 5]),
    (64000, [8, 8, 8, 5, 5, 5]),
])  # fmt: skip
def test_fsq_takes_the_papers_levels_and_every_code_can_be_reached(size: int, levels: list[int]) -> None:
    quantizer = FSQ(FSQConfig(), size, len(levels))
    assert quantizer.levels.tolist() == levels
    codebook = quantizer.codebook()
    assert codebook.shape == (size, len(levels)) and len(codebook.unique(dim=0)) == size
    centres = torch.atanh((codebook * (quantizer.levels // 2) + 0.5 * (quantizer.levels % 2 == 0))
                          / ((quantizer.levels - 1) / 2 * 1.001))  # fmt: skip
    shift = torch.tan(0.5 * (quantizer.levels % 2 == 0) / ((quantizer.levels - 1) / 2 * 0.999))
    assert torch.equal(quantizer(centres - shift).indices, torch.arange(size))


@pytest.mark.parametrize(("options", "sizes", "message"), [
    ({}, (1024, 4), r"codebook_size=1024 .* 240 with code_dim=3, 1000 with code_dim=4, .*model\.quantizer\.levels"),
    ({}, (1000, 5), r"\[8, 5, 5, 5\] need model\.codebook_size=1000 and model\.code_dim=4, not 1000 and 5"),
    ({"levels": [5, 5]}, (24, 2), r"\[5, 5\] need model\.codebook_size=25 and model\.code_dim=2, not 24 and 2"),
    ({"levels": [5, 1]}, (5, 2), r"levels=\[5, 1\] must be at least 2"),
    ({"commitment_weight": 0.25}, (1000, 4), r"commitment_weight=0\.25: FSQ has no loss"),
])  # fmt: skip
def test_fsq_sizes_that_do_not_fit(options: dict, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FSQ(FSQConfig(**options), *sizes)


def test_fsq_has_no_loss_and_a_latent_that_is_not_a_number_shows() -> None:
    quantizer = fsq(8, 5)
    output = quantizer(torch.tensor([[torch.nan, 0.0], [torch.inf, -torch.inf]]))
    assert output.loss == 0
    assert output.indices.min() >= 0 and output.indices.max() < 40
    assert output.quantized[0, 0].isnan() and output.quantized[1].tolist() == [0.75, -1.0]


@pytest.mark.parametrize("levels", [[8, 6, 5], [3, 4, 7, 5]])
def test_fsq_equals_the_public_one(levels: list[int]) -> None:
    """Same order of codes. Its range is a thousandth wider and its shift atanh: latents near a level's edge differ."""
    public, quantizer = PublicFSQ(levels), fsq(*levels)
    assert torch.equal(quantizer.codebook(), public.implicit_codebook)
    z = random(1, 500, len(levels)).requires_grad_()
    bounded = quantizer.bound(z.detach())
    clear = ((bounded - bounded.floor() - 0.5).abs() > 0.02).all(-1)  # (1, N)
    assert clear.float().mean() > 0.7
    output, (codes, indices) = quantizer(z), public(z)
    assert torch.equal(output.indices[clear], indices.long()[clear])
    assert torch.equal(output.quantized[clear], codes[clear])
    upstream = random(1, 500, len(levels), seed=1)
    (actual,) = torch.autograd.grad((output.quantized * upstream).sum(), z)
    (expected,) = torch.autograd.grad((codes * upstream).sum(), z)
    torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


# ---- LFQ


def lfq(bits: int, **options: float) -> LFQ:
    return LFQ(LFQConfig(**options), 2**bits, bits)  # type: ignore[arg-type]


def test_lfq_by_hand() -> None:
    """Equations 3 and 4: the sign, with -1 for 0, and bit i worth 2^i."""
    output = lfq(3, entropy_weight=0.0)(torch.tensor([[0.1, -5.0, 2.0], [0.0, 3.0, -0.1], [-1.0, -1.0, -1.0]]))
    assert output.quantized.tolist() == [[1, -1, 1], [-1, 1, -1], [-1, -1, -1]]
    assert output.indices.tolist() == [5, 2, 0]
    commitment = (0.9**2 + 4**2 + 1 + 1 + 2**2 + 0.9**2) / 9
    torch.testing.assert_close(output.loss, torch.tensor(0.25 * commitment))


def dense_entropies(z: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Equation 5 as it stands, with the (N, K) matrix, codes in the order of their index."""
    codes = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=z.shape[1])), dtype=z.dtype).flip(1)
    logits = -(z.unsqueeze(1) - codes).square().sum(-1) / temperature  # (N, K)
    p = logits.softmax(-1)
    return -(p * logits.log_softmax(-1)).sum(-1).mean(), -(p.mean(0) * p.mean(0).log()).sum()


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_lfq_entropies_are_exact_and_so_are_their_gradients(bits: int, temperature: float) -> None:
    z = (random(40, bits) + 0.3).double().requires_grad_()
    entropies, dense = lfq(bits, temperature=temperature).entropies(z), dense_entropies(z, temperature)
    for a, b in zip(entropies, dense, strict=True):
        torch.testing.assert_close(a, b)
        (actual,), (expected,) = (torch.autograd.grad(term, z, retain_graph=True) for term in (a, b))
        torch.testing.assert_close(actual, expected)
        assert actual.any()


def test_lfq_entropy_weight_reaches_the_loss() -> None:
    z = random(30, 4)
    weighted, plain = (lfq(4, entropy_weight=weight, temperature=1.0)(z).loss for weight in (0.3, 0.0))
    of_latents, of_codes = dense_entropies(z, 1.0)
    torch.testing.assert_close(weighted - plain, 0.3 * (of_latents - of_codes))


def test_lfq_entropy_of_certain_and_of_even_latents() -> None:
    """Certain of K different codes: H(q(z)) = 0 and H(E[q(z)]) = log K. All zero: both log K, at no gradient."""
    quantizer = lfq(6, temperature=0.01)
    of_latents, of_codes = quantizer.entropies(quantizer.codebook())
    assert of_latents.abs() < 1e-6 and of_codes == pytest.approx(math.log(64))
    of_latents, of_codes = quantizer.entropies(torch.zeros(7, 6))
    assert of_latents == pytest.approx(math.log(64)) and of_codes == pytest.approx(math.log(64))


def test_lfq_of_65536_codes_holds_no_matrix_of_tokens_and_codes() -> None:
    quantizer, z = lfq(16), random(2000, 16).requires_grad_()
    sizes: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = quantizer(z).loss
    loss.backward()
    assert max(sizes) <= 2000 * 2**8, "N K would be 131 million"
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all() and z.grad.any()


@pytest.mark.parametrize(("size", "dim", "message"), [
    (1024, 9, r"not 1024 and 9: take 1024 and 10"), (1000, 10, r"not 1000 and 10: take 1024 and 10"),
    (1, 1, r"take 2 and 1"),
])  # fmt: skip
def test_lfq_sizes_that_do_not_fit(size: int, dim: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LFQ(LFQConfig(), size, dim)


def test_lfq_needs_a_temperature() -> None:
    with pytest.raises(ValueError, match=r"temperature=0"):
        lfq(4, temperature=0.0)


def test_lfq_equals_the_public_one() -> None:
    """Whose first dimension is the highest bit: the order of the dimensions is turned round."""
    bits, temperature = 5, 2.0
    public = PublicLFQ(dim=bits, entropy_loss_weight=0.1, commitment_loss_weight=0.25).train()
    quantizer = lfq(bits, temperature=temperature)
    assert torch.equal(quantizer.codebook(), public.codebook.flip(1))
    z = random(1, 60, bits).requires_grad_()
    output = quantizer(z)
    expected = public(z.flip(-1), inv_temperature=1 / temperature)
    assert torch.equal(output.indices, expected.indices.long())
    torch.testing.assert_close(output.quantized, expected.quantized.flip(-1))
    torch.testing.assert_close(output.loss, expected.entropy_aux_loss)
    upstream = random(1, 60, bits, seed=1)
    (a,) = torch.autograd.grad((output.quantized * upstream).sum() + output.loss, z)
    (b,) = torch.autograd.grad((expected.quantized.flip(-1) * upstream).sum() + expected.entropy_aux_loss, z)
    torch.testing.assert_close(a, b)
