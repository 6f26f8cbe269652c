"""The linear layer of sampling against torch's, on either side of each bound of its numbers of rows."""

import pytest
import torch
import torch.nn.functional as F

from lightning_modules.networks.few_rows import BLOCK, Linear


@pytest.mark.parametrize("rows", [1, 3, 12, 13, 48, 49])
@pytest.mark.parametrize("out", [40, 2 * BLOCK])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_equals_torch(rows: int, out: int, bias: bool) -> None:
    layer = Linear(24, out, bias=bias)
    x = torch.randn(rows, 1, 24)
    expected = F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, atol=0, rtol=0)  # with gradient: torch's own
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected.detach())
        torch.testing.assert_close(layer(x.transpose(0, 1)), expected.detach().transpose(0, 1))
        transposed = x[:, 0].t().contiguous().t()[:, None]  # as Linear may return it
        torch.testing.assert_close(layer(transposed), expected.detach())
