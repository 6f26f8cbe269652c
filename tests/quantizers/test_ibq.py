"""IBQ against the numbers of its public code, the formula written out, and itself in blocks.

Shapes: N latents of d dimensions, K codes.
"""

import pytest
import torch
from parity_vectors import assert_close, load_io, load_weights
from torch import Tensor

from lightning_modules.quantizers import IBQ, IBQConfig, ibq

K, D = 40, 6


def make(size: int = K, dim: int = D, **options: float) -> IBQ:
    torch.manual_seed(0)
    quantizer = IBQ(IBQConfig(**options), size, dim)  # type: ignore[arg-type]
    torch.nn.init.normal_(quantizer.codes)
    return quantizer


def public() -> tuple[IBQ, dict[str, Tensor], Tensor]:
    """The quantizer with the averaged codes, its vectors channels-last, and the latents."""
    io = {name: x.movedim(1, -1) if x.ndim == 4 else x for name, x in load_io("ibq").items()}
    codes = load_weights("ibq")["model_ema.quantizeembeddingweight"].float()
    quantizer = make(*codes.shape).eval()
    quantizer.load_state_dict({"codes": codes})
    return quantizer, io, io["latents"].clone().requires_grad_()


def test_outputs_and_losses_are_those_of_the_public_code() -> None:
    quantizer, io, z = public()
    output = quantizer(z)
    assert torch.equal(output.indices, io["indices"])
    nearest = torch.cdist(z.detach(), quantizer.codes.detach().expand(2, 16, -1, -1)).argmin(-1)
    assert (nearest != io["indices"]).float().mean() > 0.5, "the case cannot tell it from the nearest code"
    assert_close(output.quantized, io["codebook_entry"])
    _, _, of_latents, of_codes = quantizer.compare_all(z.flatten(0, -2))
    assert_close(of_latents, io["sample_entropy"])
    assert_close(of_codes, io["avg_entropy"])
    assert_close(output.loss, io["total_quantiser_loss"])
    quantizer.config.entropy_weight = 0.0
    assert_close(quantizer(z).loss, io["quant_loss"])


@pytest.mark.parametrize(("weight", "name"), [(0.0, "quant"), (0.05, "total")])
@pytest.mark.parametrize("pairs", [2**24, 128 * 100])
def test_gradients_are_those_of_the_public_code(
    weight: float, name: str, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one block and in blocks of 100 latents, which the backward pass computes again."""
    monkeypatch.setattr(ibq, "PAIRS", pairs)
    quantizer, io, z = public()
    quantizer.config.entropy_weight = weight
    output = quantizer(z)
    ((output.quantized * io["grad_weight"]).sum() + output.loss).backward()
    assert z.grad is not None and quantizer.codes.grad is not None
    torch.testing.assert_close(z.grad, io[f"grad_latents_{name}"], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(quantizer.codes.grad, io[f"grad_codebook_{name}"], atol=2e-3, rtol=1e-3)
    assert quantizer.codes.grad.any(1).all(), "every code is moved"


def test_index_backpropagation_as_it_stands_in_the_paper() -> None:
    quantizer, upstream = make(), torch.randn(30, D)
    z, codes = torch.randn(30, D).requires_grad_(), quantizer.codes.detach().clone().requires_grad_()
    p = (z @ codes.T).softmax(1)
    hard = torch.nn.functional.one_hot(p.argmax(1), K)
    expected = torch.autograd.grad((((hard + p - p.detach()) @ codes) * upstream).sum(), [z, codes])
    output = quantizer(z)
    actual = torch.autograd.grad((output.quantized * upstream).sum(), [z, quantizer.codes])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_lookup_of_the_indices_is_the_quantized_latent_bit_for_bit(training: bool) -> None:
    quantizer = make().train(training)
    z = torch.randn(2, 3, 4, D) * 1e3
    output = quantizer(z)
    assert output.indices.shape == (2, 3, 4) and output.indices.dtype == torch.int64 and output.loss.ndim == 0
    assert torch.equal(output.quantized, quantizer.lookup(output.indices))
    assert torch.equal(output.indices, (z.double() @ quantizer.codes.double().T).argmax(-1))


def test_each_term_reaches_what_it_moves() -> None:
    z = torch.randn(30, D)
    for name, moves_latents, moves_codes in [
        ("commitment_weight", True, False),
        ("codebook_weight", False, True),
        ("joint_weight", True, True),
        ("entropy_weight", True, True),
    ]:
        weights = {"commitment_weight": 0.0, "codebook_weight": 0.0, "joint_weight": 0.0, "entropy_weight": 0.0}
        quantizer, leaf = make(**weights | {name: 1.0, "temperature": 1.0}), z.clone().requires_grad_()
        quantizer(leaf).loss.backward()
        assert leaf.grad is not None and quantizer.codes.grad is not None
        assert (bool(leaf.grad.any()), bool(quantizer.codes.grad.any())) == (moves_latents, moves_codes), name


def test_ranks_are_those_of_the_dot_product() -> None:
    quantizer, z = make(), torch.randn(5, 7, D)
    wanted = (z @ quantizer.codes.T).argsort(-1, descending=True)
    assert torch.equal(quantizer.ranked(z, [1, 2, 9]), wanted[..., [0, 1, 8]])
    assert torch.equal(quantizer.ranked(z, [1])[..., 0], quantizer(z).indices)
    with pytest.raises(ValueError, match="between 1 and the 40 codes"):
        quantizer.ranked(z, [K + 1])


def test_its_loss_brings_the_codes_to_the_latents() -> None:
    quantizer, z = IBQ(IBQConfig(temperature=1.0), 64, 4), torch.randn(512, 4)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.03)
    for _ in range(100):
        optimizer.zero_grad()
        output = quantizer(z)
        output.loss.backward()
        optimizer.step()
    assert (output.quantized - z).square().mean() < 0.35 < 0.9 < z.square().mean()


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"quantizer.temperature=0.0 must be above 0"):
        make(temperature=0.0)
