"""The linear layer of sampling against torch's."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.few_rows import Linear, packed


@pytest.mark.parametrize("rows", [1, 3, 12, 64])
@pytest.mark.parametrize("out", [40, 256])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_equals_torch(rows: int, out: int, bias: bool) -> None:
    """Also for more rows than it was packed for, and for rows in another order."""
    layer = Linear(24, out, bias=bias)
    x = torch.randn(rows, 2, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=0, rtol=0)
    with torch.inference_mode(), packed(layer, torch.float32, rows):
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x.transpose(0, 1)), expected.transpose(0, 1))
    with torch.inference_mode(), packed(layer, torch.bfloat16, rows):
        y = layer(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected.detach(), atol=3e-2, rtol=3e-2)


def test_a_copy_lasts_no_longer_than_its_context() -> None:
    """So that weights trained afterwards count."""
    layer = Linear(8, 8)
    with pytest.raises(ZeroDivisionError), torch.inference_mode(), packed(layer, torch.float32, 1):
        1 / 0  # noqa: B018
    assert layer.copy is None
    torch.nn.init.zeros_(layer.weight)
    torch.testing.assert_close(layer(torch.ones(1, 8))[0], layer.bias)
