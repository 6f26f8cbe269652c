"""Turns a public checkpoint into one of this suite, which experiments.evaluate measures like a model trained here.

    python -m experiments.import_checkpoint --from taming vqgan_imagenet_f16_1024.ckpt runs/imported/taming.ckpt
    python -m experiments.evaluate runs/imported/taming.ckpt --data-dir IMAGENET

Strict on both sides: every weight of the module is filled, and every key of the file is used or in its family's list of
what is left out. The model is inferred from the shapes; keys change what weights do not tell, such as
model.quantizer.l2_norm=false. No code in the file is run. See docs/importing.md.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    checkpoint, out = "a .ckpt, .pt, .pth or .safetensors file", "the checkpoint to write"
    parser = arguments.parser("import_checkpoint", __doc__, checkpoint=checkpoint, out=out)
    parser.add_argument(
        "--from", dest="family", required=True, help="whose code made the file: docs/importing.md lists them"
    )
    arguments.add_dry_run(parser)
    parser.add_argument(
        "--image-size", type=int, help="pixels (default: 256; enhancing, titok: as their positions say)"
    )
    parser.add_argument(
        "--head-dim", type=int, help="channels of an attention head of enhancing or titok (default: 64)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    given = parser.parse_intermixed_args()
    from experiments.config.values import from_dotlist
    from experiments.importers import FAMILIES, Options
    from experiments.importers.convert import import_checkpoint
    from lightning_modules.checks import hint, require

    with user_errors():
        others = f"none of {', '.join(FAMILIES)}{hint(given.family, FAMILIES)}"
        require(given.family in FAMILIES, f"--from {given.family}: {others}")
        for option, value in {"image-size": given.image_size, "head-dim": given.head_dim}.items():
            require(value is None or value >= 1, f"--{option} {value} must be at least 1")
        options, overrides = Options(given.image_size, given.head_dim), from_dotlist(given.overrides)
        paths = Path(given.checkpoint), Path(given.out)
        print(import_checkpoint(given.family, *paths, options, overrides, given.force, given.dry_run))


if __name__ == "__main__":
    main()
