"""Encodes a data set once with a trained tokenizer; stage 2 then reads the token ids and never runs the encoder.
With --latents it keeps the encoder's output before quantization instead, which LDM, DiT and SiT read.

    python -m experiments.tokenize runs/experiments/RUN/checkpoints/final.ckpt --data-dir data [key=value ...]

The same command continues where it was stopped, with the same result (given the same --batch-size), and does nothing
when all is finished. Validation images are encoded plain; the views of training images are fixed here, once. Keys may
change the data (data.train_size=1000; default: the whole set) or where it runs (runtime.accelerator=cpu).
"""

from pathlib import Path

from datamodules.token_files import SPLITS, STORED
from experiments.pipeline.token_writer import write_encoded
from experiments.pipeline.tokens import prepare
from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_checkpoint("tokenize", __doc__)
    arguments.add_data(parser)
    parser.add_argument("--views", type=int, help="views of a training image; those beyond the fixed are random crops")
    parser.add_argument("--flip", action="store_true", help="the second view is the mirrored image")
    parser.add_argument("--latents", choices=STORED, default="", help="keep latents as these numbers, not tokens")
    parser.add_argument("--out", help="folder to write (default: OUTPUT_DIR/tokens/DIGEST or latents/DIGEST)")
    parser.add_argument("--batch-size", type=int, default=64, help="images encoded at a time, each in all its views")
    given = parser.parse_intermixed_args()
    with user_errors():
        job = prepare(given)
        folder = Path(given.out or job.folder)
        sizes = " and ".join(f"{job.meta.shape(split)} {split}" for split in SPLITS)
        axes = "dimensions, rows, columns" if given.latents else "tokens"
        print(f"{job.meta.kind} of {job.meta.data_id} (images, views, {axes}): {sizes}", flush=True)
        if not write_encoded(job, folder):
            print("they are finished, nothing was done")
        print(folder)


if __name__ == "__main__":
    main()
