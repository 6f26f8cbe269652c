"""Vision-transformer encoder and decoder of ViT-VQGAN (paper A, section 3.1 and Table 2).

Shapes: B batch, H W image, h w patch grid, N = h * w tokens, D width, nh heads, hd head dim, P patch size.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import BackboneConfig, Decoder, Encoder, divided


class ViTSize(NamedTuple):
    """One row of A-Table 2."""

    blocks: int
    heads: int
    width: int
    mlp_width: int


VIT_SIZES: dict[str, ViTSize] = {
    "micro": ViTSize(2, 4, 64, 256),  # micro to mini: of no paper, for CIFAR-10 on a CPU
    "tiny": ViTSize(4, 4, 128, 512),
    "mini": ViTSize(6, 4, 256, 1024),
    "small": ViTSize(8, 8, 512, 2048),  # small to large: A-Table 2
    "base": ViTSize(12, 12, 768, 3072),
    "large": ViTSize(32, 16, 1280, 5120),
}


@dataclass
class ViTConfig(BackboneConfig):
    """The defaults follow paper A where it speaks; what it leaves open is an option.

    The public enhancing-transformers code, whose checkpoints can be imported, is `positions="sincos"`,
    `mlp_activation="tanh"`, `tanh_head=False`, `qkv_bias=False`, `head_dim=64`.
    """

    name: str = "vit"
    patch_size: int = 8
    encoder_size: str = "base"  # a key of VIT_SIZES
    decoder_size: str = "base"
    encoder_dims: list[int] = field(default_factory=list)  # blocks, heads, width, MLP width; overrides the size
    decoder_dims: list[int] = field(default_factory=list)
    positions: str = "learned"  # or "sincos", fixed; A does not say which
    mlp_activation: str = "gelu"  # or "tanh"; A does not say
    tanh_head: bool = True  # A 3.1: two-layer feed-forward with tanh after the transformer blocks
    qkv_bias: bool = True
    head_dim: int = 0  # 0: width / heads
    dropout: float = 0.0  # A-Table 2

    def size(self, part: str) -> ViTSize:
        """The dimensions of `part`, "encoder" or "decoder"."""
        name, dims = getattr(self, f"{part}_size"), getattr(self, f"{part}_dims")
        if dims:
            if len(dims) != len(ViTSize._fields):
                raise ValueError(f"{part}_dims {dims} must be [blocks, heads, width, mlp_width]")
            return ViTSize(*dims)
        if name not in VIT_SIZES:
            raise ValueError(f"{part}_size {name!r} is not one of {', '.join(VIT_SIZES)}")
        return VIT_SIZES[name]


ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "tanh": nn.Tanh}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(hd)) v, (B, nh, N, hd). In bf16 on a CPU the formula is quicker at few tokens."""
    if q.dtype == torch.bfloat16 and q.device.type == "cpu" and q.shape[2] <= 256:
        return (q * q.shape[3] ** -0.5 @ k.mT).softmax(3).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, heads: int, head_dim: int, qkv_bias: bool, projects: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=qkv_bias)
        # One head of full width needs no output projection: it would only follow the linear value projection.
        whole = heads == 1 and head_dim == width and not projects
        self.proj = nn.Identity() if whole else nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, nh, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, nh, N, hd)
        y = attend(q, k, v)  # (B, nh, N, hd)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, N, D)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, size: ViTSize, config: ViTConfig, projects: bool = False) -> None:
        """`projects`: attention of one head has an output projection, too."""
        super().__init__()
        if not config.head_dim and size.width % size.heads:
            raise ValueError(f"width {size.width} is not divisible by {size.heads} heads; set head_dim")
        if config.mlp_activation not in ACTIVATIONS:
            raise ValueError(f"mlp_activation {config.mlp_activation!r} is not one of {', '.join(ACTIVATIONS)}")
        head_dim = config.head_dim or size.width // size.heads
        self.norm1 = nn.LayerNorm(size.width)
        self.attention = Attention(size.width, size.heads, head_dim, config.qkv_bias, projects)
        self.norm2 = nn.LayerNorm(size.width)
        self.mlp = nn.Sequential(
            nn.Linear(size.width, size.mlp_width),
            ACTIVATIONS[config.mlp_activation](),
            nn.Linear(size.mlp_width, size.width),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x)))  # (B, N, D)
        return x + self.dropout(self.mlp(self.norm2(x)))


def sincos_positions(width: int, grid_size: int) -> Tensor:
    """Fixed 2-D sine-cosine table (1, N, D): the first half of D encodes the column, the second the row.

    Each half holds sines, then cosines, of wavelengths from 2 pi to 10,000 * 2 pi patches (He et al. 2022).

    Raises:
        ValueError: `width` is not divisible by 4.
    """
    if width % 4:
        raise ValueError(f"width {width} is not divisible by 4, which positions 'sincos' needs")
    frequency = 10_000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D/4,)
    angle = torch.arange(grid_size, dtype=torch.float64)[:, None] * frequency  # (h, D/4)
    table = torch.cat([angle.sin(), angle.cos()], dim=1)  # (h, D/2)
    columns = table.expand(grid_size, -1, -1)  # (h, w, D/2)
    rows = table[:, None].expand(-1, grid_size, -1)  # (h, w, D/2)
    return torch.cat([columns, rows], dim=2).flatten(0, 1)[None].float()  # (1, N, D)


class Transformer(nn.Module):
    """What both sides share: positions, blocks, last LayerNorm, tanh head; (B, N, D) to (B, N, D)."""

    positions: Tensor

    def __init__(self, size: ViTSize, config: ViTConfig, grid_size: int) -> None:
        super().__init__()
        if config.positions == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(1, grid_size**2, size.width))
        elif config.positions == "sincos":
            self.register_buffer("positions", sincos_positions(size.width, grid_size))
        else:
            raise ValueError(f"positions {config.positions!r} is neither 'learned' nor 'sincos'")
        self.blocks = nn.ModuleList(Block(size, config) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head: nn.Module = nn.Identity()
        if config.tanh_head:  # A gives no width for the middle layer: the MLP width of the blocks
            self.head = nn.Sequential(
                nn.Linear(size.width, size.mlp_width), nn.Tanh(), nn.Linear(size.mlp_width, size.width)
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _initialise(network: nn.Module) -> None:
    """Xavier-uniform weights, a patch convolution counting as a linear layer, and zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ViTEncoder(Encoder):
    """Image (B, 3, H, W) in [-1, 1] to latents (B, h, w, D), with H = W = `image_size` and D = `width`.

    Raises:
        ValueError: a value of `config` is unknown, or `image_size` is not divisible by the patch size.
    """

    def __init__(self, config: ViTConfig, image_size: int) -> None:
        super().__init__()
        size = config.size("encoder")
        self.grid_size = divided(image_size, config.patch_size, f"patch_size {config.patch_size}")
        self.width, self.image_size = size.width, image_size
        self.patch_embedding = nn.Conv2d(3, size.width, config.patch_size, stride=config.patch_size)
        self.transformer = Transformer(size, config, self.grid_size)
        _initialise(self)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embedding(image).flatten(2).transpose(1, 2)  # (B, N, D)
        return self.transformer(x).unflatten(1, (self.grid_size, self.grid_size))  # (B, h, w, D)


class ViTDecoder(Decoder):
    """Latents (B, h, w, D) to an image (B, out_channels, H, W), unbounded: a sigmoid, if any, is part of the loss.

    Raises:
        ValueError: a value of `config` is unknown, or `image_size` is not divisible by the patch size.
    """

    def __init__(self, config: ViTConfig, image_size: int, out_channels: int = 3) -> None:
        super().__init__()
        size = config.size("decoder")
        self.grid_size = divided(image_size, config.patch_size, f"patch_size {config.patch_size}")
        self.width = size.width
        self.transformer = Transformer(size, config, self.grid_size)
        self.pixels = nn.ConvTranspose2d(size.width, out_channels, config.patch_size, stride=config.patch_size)
        _initialise(self)

    @property
    def last_layer(self) -> Tensor:
        """Weight of the pixel projection, where the adaptive adversarial weight compares gradients."""
        return self.pixels.weight

    def features(self, latents: Tensor) -> Tensor:
        x = self.transformer(latents.flatten(1, 2))  # (B, N, D)
        return x.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))  # (B, D, h, w)

    def to_pixels(self, features: Tensor) -> Tensor:
        return self.pixels(features)  # (B, out_channels, H, W)
