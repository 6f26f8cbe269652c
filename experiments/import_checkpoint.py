"""Turns a public checkpoint into one of this suite, which experiments.evaluate measures like a model trained here.

    python -m experiments.import_checkpoint --from taming vqgan_imagenet_f16_1024.ckpt runs/imported/taming.ckpt
    python -m experiments.evaluate runs/imported/taming.ckpt --data-dir IMAGENET

Strict on both sides: every weight of the module is filled, and every key of the file is used or in its family's list of
what is left out. The model is inferred from the shapes. No code in the file is run. See docs/importing.md.
"""

import argparse
from pathlib import Path

from experiments.config.values import from_dotlist
from experiments.importers import FAMILIES, Options
from experiments.importers.convert import import_checkpoint
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.import_checkpoint",
        description="Turn a public tokenizer's checkpoint into one that experiments.evaluate measures.",
        epilog="Keys change what weights do not tell, for example model.quantizer.l2_norm=false.",
    )
    parser.add_argument("--from", dest="family", required=True, choices=FAMILIES, help="whose code made the file")
    parser.add_argument("checkpoint", type=Path, help="a .ckpt, .pt, .pth or .safetensors file")
    parser.add_argument("out", type=Path, help="the checkpoint to write")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--image-size", type=int, help="pixels (default: 256; enhancing: as its positions say)")
    parser.add_argument("--head-dim", type=int, help="channels of an attention head of enhancing (default: 64)")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    arguments = parser.parse_intermixed_args()  # options may stand between keys
    with user_errors():
        for option in ("image_size", "head_dim"):
            if (value := getattr(arguments, option)) is not None and value < 1:
                raise ValueError(f"--{option.replace('_', '-')} {value} must be at least 1")
        options = Options(arguments.image_size, arguments.head_dim)
        overrides = from_dotlist(arguments.overrides)
        print(
            import_checkpoint(
                arguments.family, arguments.checkpoint, arguments.out, options, overrides, arguments.force
            )
        )


if __name__ == "__main__":
    main()
