"""What VIM's transformer sees in training beside clean tokens, how it is counted and shown.

Letters: B images, s input tokens.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_modules import prior
from lightning_modules.base import Layout, count
from lightning_modules.distributed import draw_rows
from lightning_modules.figures import bits_figure, sample_grid
from lightning_modules.losses.tokens import LOGITS_AT_ONCE
from lightning_modules.networks.gpt import GPT
from lightning_modules.parts import Part

LAYOUT: Layout = {
    "tokens": {
        "loss, nats a token": ["Multiline", ["loss/generator"]],
        "bits per token": ["Multiline", ["bits_per_token/train", "val/bits_per_token"]],
    },
    **prior.LAYOUT,
}


def keep_tokens(tokens: Tensor, share: float, vocab_size: int) -> Tensor:
    """Replaces all but a share of the input tokens (B, s) by random ones."""
    if share == 1:
        return tokens
    length, device = tokens.shape[1], tokens.device
    noise = draw_rows(lambda n: torch.randint(vocab_size, (n, length), device=device), len(tokens))
    uniform = draw_rows(lambda n: torch.rand(n, length, device=device), len(tokens))
    return torch.where(uniform < share, tokens, noise)


def pictures(module: Any) -> dict[str, Any]:
    """Of a VIM, after a validation: at each the same images, of the same numbers, seed and classes."""
    shown: dict[str, Any] = {"bits per token by position": bits_figure(module.bits_by_position)}
    if module.tokenizer is not None:
        shown["samples, classes in turn"] = sample_grid(module, prior.NUM_SHOWN)
    return shown


def gpt_parts(gpt: GPT) -> list[Part]:
    """MACs are of one image with all its tokens at once, as in training; logits are made a chunk at a time."""
    inputs = (torch.zeros(1, gpt.num_tokens, gpt.size.width),)
    tables = [child for name, child in gpt.named_children() if name not in ("blocks", "head")]
    macs, logits = gpt.num_tokens * count(gpt.head), 4 * gpt.num_tokens * gpt.vocab_size
    return [
        Part("blocks", nn.Sequential(*gpt.blocks), inputs),
        Part("tables and norm", weights=nn.ModuleList(tables)),
        Part("head", weights=gpt.head, macs=macs, kept_bytes=logits, kept_limit=4 * LOGITS_AT_ONCE),
    ]
