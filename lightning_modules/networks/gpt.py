"""Decoder-only transformer over the tokens of an image: VIM (paper A, section 4 and Table 2) and B's GPT (appendix A).

Shapes: B batch, T tokens of an image (raster order), S inputs so far (start included), D width, nh heads, hd head
dim, V vocabulary. Slot 0 of every sequence is the start: the class, or "no class". Slot t predicts token t.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dropout import Dropout, dropout
from .few_rows import Linear


class GPTSize(NamedTuple):
    """One row of A-Table 2."""

    blocks: int
    heads: int
    width: int
    mlp_width: int

    @property
    def words(self) -> str:
        return f"{self.blocks} blocks, {self.heads} heads, width {self.width:,}, MLP {self.mlp_width:,}"


GPT_SIZES: dict[str, GPTSize] = {
    "micro": GPTSize(4, 4, 128, 512),  # micro to small: of no paper, for CIFAR-10 on a CPU
    "tiny": GPTSize(6, 4, 192, 768),
    "mini": GPTSize(8, 8, 256, 1024),
    "small": GPTSize(8, 8, 512, 2048),
    "gpt-404m": GPTSize(24, 16, 1024, 4096),  # B, appendix A
    "base": GPTSize(24, 16, 1536, 6144),  # base and large: A-Table 2
    "large": GPTSize(36, 32, 2048, 8192),
}
INIT_STD = 0.02  # GPT-2's; neither paper says
FEW_SLOTS = 256  # torch's fused bf16 attention on a CPU is slower than its parts up to here, sixfold at 64 slots


@dataclass
class GPTConfig:
    """The defaults follow paper A; taming's and B's GPT is `positions="1d"`."""

    size: str = "base"  # a key of GPT_SIZES
    dims: list[int] = field(default_factory=list)  # blocks, heads, width, MLP width; overrides the size
    positions: str = "2d"  # a table of rows and one of columns, added (A 4), or "1d", one of tokens
    dropout: float = 0.1  # on residual, activation and attention (A-Table 2); 0: B, and A's probe of VIM-Large
    bias: bool = True  # of the linear layers in the blocks; A does not say. The head has none

    def check(self) -> None:
        """Raises ValueError, with the key relative to this section, for a name or size that cannot be."""
        self.resolved()
        if self.positions not in ("1d", "2d"):
            raise ValueError(f"positions={self.positions!r} is neither '1d' nor '2d'")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")

    def resolved(self) -> GPTSize:
        """The dimensions.

        Raises:
            ValueError: the size is unknown, or the dimensions are not four with heads that divide the width.
        """
        if not self.dims and self.size not in GPT_SIZES:
            raise ValueError(f"size={self.size!r} is not one of {', '.join(GPT_SIZES)}")
        if self.dims and len(self.dims) != len(GPTSize._fields):
            raise ValueError(f"dims={self.dims} must be [blocks, heads, width, mlp_width]")
        size = GPTSize(*self.dims) if self.dims else GPT_SIZES[self.size]
        if min(size) < 1:
            raise ValueError(f"dims={self.dims} must be at least 1 each")
        if size.width % size.heads:
            raise ValueError(f"dims={list(size)}: width {size.width} is not divisible by {size.heads} heads")
        return size


class KVCache:
    """Keys and values of one block for the slots seen so far, in buffers for all of them.

    `slot` (1,) int64, where set, is the next one's number on the device, and `length` stays behind: all shapes are then
    the same at every step, so that a CUDA graph can repeat it.
    """

    def __init__(self, batch: int, heads: int, slots: int, head_dim: int, like: Tensor) -> None:
        self.keys, self.values = (like.new_zeros(batch, heads, slots, head_dim) for _ in range(2))
        self.length = 0
        self.slot: Tensor | None = None

    def next_slot(self) -> Tensor:
        """(1,) int64 on the device."""
        return torch.arange(self.length, self.length + 1, device=self.keys.device) if self.slot is None else self.slot

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Adds (B, nh, s, hd). Returns keys and values (B, nh, S, hd), and which are filled, (1, S), or None for all.

        Without `slot` they are views of the filled part, never of the whole buffer.
        """
        if self.slot is not None:
            self.keys.index_copy_(2, self.slot, keys)
            self.values.index_copy_(2, self.slot, values)
            filled = torch.arange(self.keys.shape[2], device=keys.device) <= self.slot
            return self.keys, self.values, filled[None]
        stop = self.length + keys.shape[2]
        assert stop <= self.keys.shape[2], "the cache is full"
        self.keys[:, :, self.length : stop].copy_(keys)
        self.values[:, :, self.length : stop].copy_(values)
        self.length = stop
        return self.keys[:, :, :stop], self.values[:, :, :stop], None


def attend(q: Tensor, k: Tensor, v: Tensor, p: float = 0.0, filled: Tensor | None = None) -> Tensor:
    """Attention of the last slots q (B, nh, s, hd) to k and v (B, nh, S, hd), causal, with dropout `p` of its weights.

    `filled` (1, S): instead the one slot q sees those.
    """
    slots = q.shape[2]
    if filled is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=filled)
    if q.device.type == "cpu" and (slots == 1 or p > 0 or (q.dtype == torch.bfloat16 and slots <= FEW_SLOTS)):
        shape, (q, k, v) = q.shape, (tensor.flatten(0, 1) for tensor in (q, k, v))  # (B nh, s or S, hd)
        scale = shape[3] ** -0.5
        if slots == 1:
            scores = torch.bmm(q * scale, k.transpose(1, 2))  # (B nh, s, S)
        else:
            future = torch.full((slots, slots), -torch.inf, dtype=q.dtype).triu_(1)
            scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=scale)
        return torch.bmm(dropout(scores.softmax(2), p), v).view(shape)
    # is_causal puts the first query beside the first key: one query after a cache must go without it, and see all.
    return F.scaled_dot_product_attention(q, k, v, is_causal=slots > 1, dropout_p=p)


class CausalAttention(nn.Module):
    """Multi-head self-attention; each slot sees itself and those before it."""

    def __init__(self, size: GPTSize, config: GPTConfig) -> None:
        super().__init__()
        self.heads = size.heads
        self.dropout = config.dropout
        self.qkv = Linear(size.width, 3 * size.width, bias=config.bias)
        self.proj = Linear(size.width, size.width, bias=config.bias)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, s, 3, nh, hd)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # 3 x (B, nh, s, hd)
        filled = None
        if cache is not None:
            assert cache.length == 0 or q.shape[2] == 1, "only one slot can be added to a cache that is not empty"
            k, v, filled = cache.append(k, v)  # (B, nh, S, hd)
        y = attend(q, k, v, self.dropout if self.training else 0.0, filled)  # (B, nh, s, hd)
        return self.proj(y.transpose(1, 2).flatten(2))  # (B, s, D)


class GPTBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, size: GPTSize, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size.width)
        self.attention = CausalAttention(size, config)
        self.norm2 = nn.LayerNorm(size.width)
        self.mlp = nn.Sequential(
            Linear(size.width, size.mlp_width, bias=config.bias),
            nn.GELU(),
            Dropout(config.dropout),
            Linear(size.mlp_width, size.width, bias=config.bias),
        )
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), cache))  # (B, s, D)
        return x + self.dropout(self.mlp(self.norm2(x)))


class GPT(nn.Module):
    """p(tokens | class) of images of `grid_size` = (rows, columns) tokens out of `vocab_size`.

    Labels are (B,) ids in [0, num_classes]; the last one, `no_class`, is the learned start of an unconditional
    model (`num_classes` 0) and the other side of classifier-free guidance. None means it for every image.

    Raises:
        ValueError: a value of `config` is unknown.
    """

    def __init__(self, config: GPTConfig, vocab_size: int, grid_size: tuple[int, int], num_classes: int = 0) -> None:
        super().__init__()
        size = config.resolved()
        self.config = config
        self.size = size
        self.vocab_size = vocab_size
        self.grid_size = grid_size
        self.num_tokens = grid_size[0] * grid_size[1]
        self.num_classes = num_classes
        self.no_class = num_classes
        self.tokens = nn.Embedding(vocab_size, size.width)
        self.start = nn.Embedding(num_classes + 1, size.width)  # has no position: it is always slot 0
        if config.positions == "2d":
            self.rows, self.columns = (nn.Embedding(length, size.width) for length in grid_size)
        else:
            self.positions = nn.Embedding(self.num_tokens, size.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(GPTBlock(size, config) for _ in range(size.blocks))
        self.norm = nn.LayerNorm(size.width)
        self.head = Linear(size.width, vocab_size, bias=False)  # not tied to the input table
        self._initialise()

    def _initialise(self) -> None:
        """GPT-2's: N(0, 0.02), zero biases, and layers that write to the residual stream by its depth smaller."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                to_residual = name.endswith(("attention.proj", "mlp.3"))
                nn.init.normal_(module.weight, std=INIT_STD / (math.sqrt(2 * self.size.blocks) if to_residual else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def position_embedding(self, index: Tensor) -> Tensor:
        """Of the tokens of these numbers (n,): (n, D)."""
        if self.config.positions == "1d":
            return self.positions(index)
        return self.rows(index // self.grid_size[1]) + self.columns(index % self.grid_size[1])

    def embed(self, tokens: Tensor, labels: Tensor | None) -> Tensor:
        """Inputs of slots 0 to s: the start, then `tokens` (B, s), s <= T. (B, 1 + s, D)."""
        if tokens.ndim != 2 or tokens.shape[1] > self.num_tokens:
            raise ValueError(
                f"tokens must be (B, s) with s in [0, {self.num_tokens}] ({self.grid_size[0]} x {self.grid_size[1]}), "
                f"got {tuple(tokens.shape)}"
            )
        if labels is None:
            labels = torch.full(tokens.shape[:1], self.no_class, device=tokens.device)
        elif labels.shape != tokens.shape[:1]:
            raise ValueError(f"labels must be ({len(tokens)},), one an image, got {tuple(labels.shape)}")
        index = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.position_embedding(index)  # (B, s, D)
        return torch.cat([self.start(labels)[:, None], x], dim=1)  # (B, 1 + s, D)

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor:
        """Tokens (B, s) int64 -> last hidden states (B, 1 + s, D); slot t has seen tokens before t and predicts t.

        Training feeds `tokens[:, :-1]`: that gives all T predictions, and no slot without a target.

        Raises:
            ValueError: more than T tokens, or not one label an image.
            IndexError: a token or label is out of range; on a CPU only, so check tokens where they are read.
        """
        x = self.dropout(self.embed(tokens, labels))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def hidden_states(self, tokens: Tensor, labels: Tensor | None = None) -> Iterator[Tensor]:
        """The output (B, 1 + s, D) of each block in turn, as the linear probe needs it (A 4.2): slot 0 is the start.

        Raises:
            ValueError: as `forward`.
        """
        x = self.dropout(self.embed(tokens, labels))
        for block in self.blocks:
            x = block(x)
            yield x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., D) of `forward` -> logits (..., V)."""
        return self.head(hidden)

    # ---- one token at a time, for sampling.py

    def new_cache(self, batch: int, dtype: torch.dtype | None = None) -> list[KVCache]:
        """An empty cache of an image for each block: 2 * blocks * B * T * D numbers of `dtype`, or the weights'."""
        head_dim = self.size.width // self.size.heads
        like = self.tokens.weight.detach().new_empty(0, dtype=dtype)
        return [KVCache(batch, self.size.heads, self.num_tokens, head_dim, like) for _ in self.blocks]

    def prefill(self, tokens: Tensor, labels: Tensor | None, cache: Sequence[KVCache]) -> Tensor:
        """The start and the tokens (B, s) that are given -> hidden state (B, D) that predicts token s, s < T."""
        return self._last(self.embed(tokens, labels), cache)

    def step(self, token: Tensor, cache: Sequence[KVCache]) -> Tensor:
        """The token (B,) that was chosen last -> hidden state (B, D) that predicts the next."""
        position = cache[0].next_slot() - 1  # of this token: slot 0 is the start
        return self._last((self.tokens(token) + self.position_embedding(position))[:, None], cache)

    def _last(self, x: Tensor, cache: Sequence[KVCache]) -> Tensor:
        for block, block_cache in zip(self.blocks, cache, strict=True):
            x = block(x, block_cache)
        return self.norm(x[:, -1])
