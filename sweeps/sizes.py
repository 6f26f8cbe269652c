"""Paper A, Table 2: parameter counts of the ViT sizes, counted by building them on the meta device.

    python -m sweeps.sizes

The paper's counts do not follow from its dimensions, and it does not say what it counts: so the blocks alone,
one side, and both sides are shown.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn

from lightning_modules.networks.vit import VIT_SIZES, ViTConfig, ViTDecoder, ViTEncoder
from sweeps.render import plain, write_sheet
from sweeps.results import Sheet

PAPER_MILLIONS = {"small": 32, "base": 91, "large": 599}  # A-Table 2, #params
IMAGE_SIZE = 256


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_size(size: str) -> dict[str, int]:
    """Parameters of the transformer blocks of one side, the encoder, and encoder and decoder together."""
    with torch.device("meta"):
        config = ViTConfig(encoder_size=size, decoder_size=size)
        encoder, decoder = ViTEncoder(config, IMAGE_SIZE), ViTDecoder(config, IMAGE_SIZE)
    blocks = sum(count(module) for name, module in encoder.named_modules() if name.endswith("blocks"))
    return {"blocks": blocks, "encoder": count(encoder), "both": count(encoder) + count(decoder)}


def make_sheet() -> Sheet:
    body = []
    for size, paper in PAPER_MILLIONS.items():
        dims, counts = VIT_SIZES[size], count_size(size)
        millions = [value / 1e6 for value in counts.values()]
        body.append(
            [size.capitalize(), *(f"{value:,}" for value in dims), f"{paper}M"]
            + [f"{value:.1f}M" for value in millions]
            + [f"{millions[1] - paper:+.1f}M"]
        )
    heads = ["size", "blocks", "heads", "width", "MLP width"]
    return Sheet(
        title="ViT-VQGAN, Table 2: transformer configurations",
        groups=[(head, [""]) for head in heads]
        + [("parameters", ["paper", "blocks only", "encoder", "encoder + decoder", "diff"])],
        body=body,
        caption=[
            "Ours: counted by building the networks at 256 x 256, patch 8, 1,024 tokens.",
            "Paper: ViT-VQGAN (arXiv 2110.04627), Table 2; diff = encoder - paper.",
            "The paper's counts do not follow from its dimensions, which are matched here.",
        ],
        num_row_heads=len(heads),
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.sizes",
        description="Count the parameters of paper A's Table 2 and print them.",
    )
    parser.add_argument("--out", default="runs/tables", help="folder of the table (default: runs/tables)")
    options = parser.parse_args(arguments)
    sheet = make_sheet()
    print(plain(sheet))
    for path in write_sheet(sheet, Path(options.out) / "vit_vqgan_table2"):
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
