"""Encodes a data set once with a trained tokenizer; stage 2 then reads the token ids and never runs the encoder.
With --latents it keeps the encoder's output before quantization instead, which LDM, DiT and SiT read.

    python -m experiments.tokenize runs/experiments/RUN/checkpoints/final.ckpt --data-dir data [key=value ...]
    python -m experiments.tokenize runs/experiments/RUN --images photo.jpg folder/ --out tokens

The same command continues where it was stopped, with the same result (given the same --batch-size), and does nothing
when all is finished. Validation images are encoded plain; the views of training images are fixed here, once. Keys may
change the data (data.train_size=1000; default: the whole set) or where it runs (runtime.accelerator=cpu).

With --images it encodes the files and folders named there, of any size, instead: OUT/tokens.npy holds their ids
(N, h, w) int32, and OUT/tokens.json their names; `python -m experiments.detokenize` turns them back into images.
"""

import argparse
from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_checkpoint("tokenize", __doc__)
    arguments.add_data(parser)
    arguments.add_dry_run(parser)
    parser.add_argument("--views", type=int, help="views of a training image; those beyond the fixed are random crops")
    parser.add_argument("--flip", action="store_true", help="the second view is the mirrored image")
    parser.add_argument(
        "--latents", choices=("float32", "float16"), default="", help="keep latents as these numbers, not tokens"
    )
    parser.add_argument("--out", help="folder to write (default: OUTPUT_DIR/tokens/DIGEST or latents/DIGEST)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at a time, each in all its views")
    parser.add_argument("--images", nargs="+", metavar="PATH", help="image files and folders, not a data set")
    parser.add_argument("--fit", choices=arguments.FITS, default="crop", help="of --images: how one becomes a square")
    given = parser.parse_intermixed_args()
    from datamodules.token_files import SPLITS
    from experiments.config.compose import as_yaml
    from experiments.pipeline.build import restore_tokenizer
    from experiments.pipeline.token_writer import write_encoded
    from experiments.pipeline.tokens import prepare
    from experiments.pipeline.upstream import restore_for

    with user_errors():
        if given.print_config:
            print(as_yaml(restore_for(given, "the tokenizer", restore_tokenizer)[0]), end="")
            return
        if given.images:
            tokenize_files(given)
            return
        job = prepare(given)
        folder = Path(given.out or job.folder)
        sizes = " and ".join(f"{job.meta.shape(split)} {split}" for split in SPLITS)
        axes = "dimensions, rows, columns" if given.latents else "tokens"
        print(f"{job.meta.kind} of {job.meta.data_id} (images, views, {axes}): {sizes}", flush=True)
        if given.dry_run:
            print(f"{folder}: to be written")
            return
        if not write_encoded(job, folder):
            print("they are finished, nothing was done")
        print(folder)


def tokenize_files(given: argparse.Namespace) -> None:
    """The command with --images."""
    from datamodules.files import image_files
    from experiments.config.values import flatten, from_dotlist, select
    from experiments.pipeline.own_images import require_all, tokenize, tokenizer_for
    from experiments.runtime.files import require_empty
    from lightning_modules.checks import require

    overrides = from_dotlist(given.overrides)
    keys = [key for key in flatten(overrides) if key != "runtime.accelerator"]
    require(not keys, f"{', '.join(keys)}: with --images only runtime.accelerator can be given")
    is_plain = given.views is None and not given.flip and not given.latents
    require(is_plain, "--views, --flip, --latents: those of a data set, not of --images")
    require(given.batch_size >= 1, f"--batch-size {given.batch_size}: must be at least 1")
    files, out = image_files(given.images), Path(given.out or "tokens").expanduser()
    require_empty(out)
    tokenizer = tokenizer_for(given.checkpoint, select(overrides, "runtime.accelerator") or "auto")
    if given.dry_run:
        print(f"{out}: tokens of {len(files)} images, --fit {given.fit}")
        return
    tokens, left_out = tokenize(tokenizer, files, out, given.fit, given.batch_size)
    print(f"{out}: tokens {tokens.shape} of {len(tokens)} images, --fit {given.fit}")
    require_all(left_out, len(files), out)


if __name__ == "__main__":
    main()
