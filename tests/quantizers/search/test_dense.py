"""The formula against distances in float64, and the one that an export records."""

import pytest
import torch
from torch import Tensor, nn

from lightning_modules.quantizers import QUANTIZERS, LargeCodebook
from lightning_modules.quantizers.search import nearest_code, search_dense


@pytest.mark.parametrize("dim", [1, 8, 64])
def test_equals_the_distances_argmin(dim: int) -> None:
    torch.manual_seed(0)
    z, codebook = torch.randn(300, dim), torch.randn(700, dim)
    assert torch.equal(search_dense(z, codebook), torch.cdist(z.double(), codebook.double()).argmin(1))
    assert torch.equal(search_dense(z, codebook), nearest_code(z, codebook))


def test_the_lowest_of_equal_codes_wins() -> None:
    assert (search_dense(torch.randn(5, 3), torch.ones(9, 3)) == 0).all()


class Encode(nn.Module):
    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, z: Tensor) -> Tensor:
        return self.quantizer(z).indices


@pytest.mark.parametrize("name", ["vq", "ema", "factorized", "large_codebook", "simvq", "rotation"])
def test_a_quantizer_can_be_exported_and_then_takes_any_batch(name: str) -> None:
    torch.manual_seed(0)
    cls, config = QUANTIZERS[name]
    quantizer = cls(config(), 600, 4)
    if isinstance(quantizer, LargeCodebook):
        quantizer.fill(torch.randn_like(quantizer.table))
    model = Encode(quantizer).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(2, 3, 3, 4),), dynamic_shapes=({0: batch},)).module()
    z = torch.randn(50, 3, 3, 4) * quantizer.codebook().std().detach()
    assert torch.equal(program(z), model(z))
