"""The rotation trick (Fifty et al. 2024, arXiv 2410.06424): VQ whose gradient turns with the latent.

The code q is seen as lambda R e, the latent e turned and stretched onto it, with lambda = |q| / |e| and the rotation R
held constant (section 4). The upstream gradient g then arrives as lambda R^T g: its angle to e is the angle it
had to q, where straight-through would keep g as it is.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_modules.quantizers.base import straight_through
from lightning_modules.quantizers.vq import VectorQuantizer, VQConfig


@dataclass
class RotationConfig(VQConfig):
    name: str = "rotation"


class RotationQuantizer(VectorQuantizer):
    """`VectorQuantizer` with the rotation's gradient; search, loss and first codes are the same."""

    config: RotationConfig

    def pass_gradient(self, z: Tensor, codes: Tensor) -> Tensor:
        return straight_through(rotate(z, codes), codes)


def rotate(z: Tensor, codes: Tensor) -> Tensor:
    """lambda R z (..., d): equal to `codes` (..., d) up to rounding, linear in z, without gradient to the codes.

    R = I - 2 r r^T + 2 q e^T of the unit vectors e, q of latent and code, and r of their sum (section 4.2); it is never
    built. Where e = -q no rotation is singled out; r is then 0, and R the reflection of e. A zero latent has no
    direction: its lambda is bounded by |q| / 1e-6.

    The official VQGAN code also differentiates lambda by |e|; here it is constant, as in the paper's equation.
    """
    with torch.no_grad():
        e, q = F.normalize(z, dim=-1), F.normalize(codes, dim=-1)
        r = F.normalize(e + q, dim=-1)
        scale = codes.norm(dim=-1, keepdim=True) / z.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return scale * (z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * q * (e * z).sum(-1, keepdim=True))
