"""Weights of taming-transformers' minGPT, and so of paper B's GPT, under the names of `GPT` (`positions="1d"`)."""

import re

import torch
from torch import Tensor

RULES = [
    (r"^tok_emb\.", "tokens."),
    (r"^ln_f\.", "norm."),
    (r"\.ln([12])\.", r".norm\1."),
    (r"\.attn\.proj\.", ".attention.proj."),
    (r"\.mlp\.2\.", ".mlp.3."),  # the activation of `GPT` has a dropout layer of its own
]


def taming_gpt_key(name: str) -> str:
    """The name in `GPT` of a tensor of minGPT; query, key and value, positions and masks have none of their own."""
    for pattern, replacement in RULES:
        name = re.sub(pattern, replacement, name)
    return name


def taming_gpt_state(
    weights: dict[str, Tensor], vocab_size: int, num_classes: int = 0, class_offset: int = 0, start_token: int = 0
) -> dict[str, Tensor]:
    """The state dict of a minGPT whose first input is a class, as that of a `GPT` of `vocab_size` image tokens.

    minGPT's start is a token like any other, with a position: class c is token `class_offset + c` (taming: 0; B, whose
    vocabulary is N + 1,000: N), and `start_token` is the start of an unconditional model. The start table of `GPT`
    holds that token plus the first position. Rows for tokens that no image has are left out.

    Raises:
        ValueError: the checkpoint's vocabulary has fewer tokens than asked for.
    """
    table, positions = weights["tok_emb.weight"], weights["pos_emb"][0]  # (V of minGPT, D), (1 + T, D)
    if len(table) < (needed := max(vocab_size, class_offset + num_classes, start_token + 1)):
        raise ValueError(f"the checkpoint's vocabulary has {len(table)} tokens, {needed} are needed")
    parts = re.compile(r"^(blocks\.\d+)\.attn\.query\.(weight|bias)$")
    state = {}
    for name, weight in weights.items():
        if match := parts.match(name):
            block, kind = match.groups()
            names = [f"{block}.attn.{part}.{kind}" for part in ("query", "key", "value")]
            state[f"{block}.attention.qkv.{kind}"] = torch.cat([weights[part] for part in names])
        elif not re.search(r"^pos_emb$|\.attn\.(key|value|mask)", name):
            state[taming_gpt_key(name)] = weight
    starts = torch.cat([table[class_offset : class_offset + num_classes], table[start_token, None]])
    state["start.weight"] = starts + positions[0]
    state["positions.weight"] = positions[1:]
    state["tokens.weight"], state["head.weight"] = table[:vocab_size], weights["head.weight"][:vocab_size]
    return state
