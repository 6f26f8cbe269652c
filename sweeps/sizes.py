"""The papers' tables of sizes, counted by building the networks on the meta device; nothing is trained.

    python -m sweeps.sizes                            A-Table 2 (ViT-VQGAN) and B-Table 8 (VQGAN-LC)
    python -m sweeps.sizes vqgan_lc/table8

A's counts do not follow from its dimensions, and it does not say what it counts: so the blocks alone, one side, and
both sides are shown. B's follow when the products inside attention are left out, so both counts are shown.
"""

import argparse
import sys
from pathlib import Path

import torch

from experiments.config.compose import load_experiment
from experiments.costs.counts import count_cost, parts_of
from experiments.costs.papers import A_TABLE_2, A_TABLE_2_VIM, B_TABLE_8
from lightning_modules.base import count
from lightning_modules.networks.gpt import GPT, GPT_SIZES, GPTConfig
from lightning_modules.networks.vit import VIT_SIZES, ViTConfig, ViTDecoder, ViTEncoder
from sweeps.grid import EXPERIMENTS
from sweeps.render import plain, write_sheet
from sweeps.sheet import Sheet

IMAGE_SIZE = 256


def count_size(size: str) -> dict[str, int]:
    """Parameters of the transformer blocks of one side, the encoder, and encoder and decoder together."""
    with torch.device("meta"):
        config = ViTConfig(encoder_size=size, decoder_size=size)
        encoder, decoder = ViTEncoder(config, IMAGE_SIZE), ViTDecoder(config, IMAGE_SIZE)
    blocks = sum(count(module) for name, module in encoder.named_modules() if name.endswith("blocks"))
    return {"blocks": blocks, "encoder": count(encoder), "both": count(encoder) + count(decoder)}


def count_vim(size: str) -> dict[str, int]:
    """Parameters of VIM's blocks, and of all of it, on the tokens of ViT-VQGAN."""
    with torch.device("meta"):
        gpt = GPT(GPTConfig(size=size), 8192, (32, 32), 1000)
    return {"blocks": count(gpt.blocks), "all": count(gpt)}


def vit_sizes() -> Sheet:
    """A-Table 2."""
    vit = [("ViT-VQGAN", size, paper, VIT_SIZES[size], count_size(size)) for size, paper in A_TABLE_2.items()]
    vim = [("VIM", size, paper, GPT_SIZES[size], count_vim(size)) for size, paper in A_TABLE_2_VIM.items()]
    body = []
    for model, size, paper, dims, counted in vit + vim:
        blocks, own, *both = (number / 1e6 for number in counted.values())
        texts = [f"{number:.1f}M" for number in (blocks, own, *both)] + [""] * (not both)
        shape = [f"{value:,}" for value in dims]
        body.append([model, size.capitalize(), *shape, f"{paper:.0f}M", *texts, f"{own - paper:+.1f}M"])
    heads = ["model", "size", "blocks", "heads", "width", "MLP width"]
    counts = ["paper", "blocks only", "encoder, or all of VIM", "encoder + decoder", "diff"]
    return Sheet(
        title="ViT-VQGAN, Table 2: transformer configurations",
        groups=[*((head, [""]) for head in heads), ("parameters", counts)],
        body=body,
        caption=[
            "Ours: counted by building the networks at 256 x 256, patch 8, 1,024 tokens of 8,192 codes, 1,000 classes.",
            "Paper: ViT-VQGAN (arXiv 2110.04627), Table 2; diff = (encoder, or all of VIM) - paper.",
            "The paper's counts do not follow from its dimensions, which are matched here.",
        ],
        num_row_heads=len(heads),
    )


def codebook_costs() -> Sheet:
    """B-Table 8."""
    body = []
    for size, (paper_macs, paper_parameters) in B_TABLE_8.items():
        experiment = load_experiment(EXPERIMENTS / "vqgan_lc_imagenet.yaml", [f"model.codebook_size={size}"])
        cost = count_cost(experiment)
        macs, parameters = cost.totals["model MACs"] / 1e9, cost.totals["model parameters"] / 1e6
        layers = count_cost(experiment, attention=False).totals["model MACs"]
        (table,) = next(part.inputs for part in parts_of(experiment) if part.name == "projector")
        texts = [f"{paper_macs:.2f}G", f"{macs:.2f}G", f"{macs - paper_macs:+.2f}G"]
        texts += [f"{number / 1e9:.2f}G" for number in (layers, cost.macs["projector"], cost.macs["search"])]
        texts += [f"{paper_parameters:.2f}M", f"{parameters:.2f}M", f"{parameters - paper_parameters:+.2f}M"]
        body.append([f"{size:,}", *texts, f"{table.numel() / 1e6:.1f}M"])
    return Sheet(
        title="VQGAN-LC, Table 8: cost of a larger codebook",
        groups=[
            ("codebook", [""]),
            ("MACs an image", ["paper", "ours", "diff", "without attention products", "of these: projector"]),
            ("search", ["not in ours"]),
            ("trained parameters", ["paper", "ours", "diff"]),
            ("frozen table", [""]),
        ],
        body=body,
        caption=[
            "Ours: experiments/vqgan_lc_imagenet.yaml at 256 x 256, counted for one image; in training the projector "
            "maps the table once a batch.",
            "Paper: VQGAN-LC (arXiv 2406.11837), Table 8; diff = ours - paper.",
            "The frozen table and the search for the nearest codes are in neither.",
            "The paper's larger row is ours without the two products inside attention, which counters of layers miss; "
            "its smaller row is that without any projector, too.",
        ],
    )


TABLES = {"vit_vqgan/table2": vit_sizes, "vqgan_lc/table8": codebook_costs}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m sweeps.sizes",
        description="Count the parameters and multiply-accumulates of A-Table 2 and B-Table 8 and print them beside "
        "the papers' counts. Nothing is trained.",
    )
    parser.add_argument("tables", nargs="*", metavar="table", help=f"{' | '.join(TABLES)} (default: all)")
    parser.add_argument("--out", default="runs/tables", help="folder of the tables (default: runs/tables)")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.tables if name not in TABLES]:
        parser.error(f"'{unknown[0]}' is none of {', '.join(TABLES)}")
    for name in options.tables or TABLES:
        sheet = TABLES[name]()
        print(f"{plain(sheet)}\n")
        for path in write_sheet(sheet, Path(options.out) / name.replace("/", "_")):
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
