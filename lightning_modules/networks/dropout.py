"""Dropout whose masks are cheap on a CPU, where torch's cost a third of a transformer's bf16 step."""

import torch
from torch import Tensor, nn

LEVELS = 256  # of a random byte


def dropout(x: Tensor, p: float) -> Tensor:
    """Sets a share `p` in [0, 1) of the numbers to zero and scales the others, so that the mean stays.

    On a CPU one random byte decides about a number: `p` is rounded to a 256th, 1 to 255 of them, and the scale is
    that of the rounded `p`, so that the mean stays exactly. Eight bytes are drawn at a time, from torch's generator.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return nn.functional.dropout(x, p)
    dropped = min(max(round(LEVELS * p), 1), LEVELS - 1)
    words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
    levels = words.view(torch.uint8)[: x.numel()].view(x.shape)
    # Zeros and ones of x's type: comparing into them is several times faster than a product with booleans.
    kept = torch.ge(levels, dropped, out=torch.empty(x.shape, dtype=x.dtype))
    # The scale comes afterwards, because bf16 would round it in the mask.
    return (x * kept).mul_(LEVELS / (LEVELS - dropped))


class Dropout(nn.Dropout):
    """`dropout` in training, nothing otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p) if self.training else input
