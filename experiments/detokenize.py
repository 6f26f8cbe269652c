"""Turns token ids back into PNG files.

    python -m experiments.tokenize runs/experiments/RUN --images folder/ --out tokens
    python -m experiments.detokenize runs/experiments/RUN tokens --out images

TOKENS is a folder that `tokenize --images` wrote, whose images get their names back, without the border of --fit pad;
or an .npy file of token ids (N, h, w), whose images are numbered.
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.of_model("detokenize", __doc__)
    arguments.add_dry_run(parser)
    parser.add_argument("tokens", metavar="TOKENS", help="a folder of `tokenize --images`, or an .npy file")
    parser.add_argument("--out", default="detokenized", help="folder to write (default: detokenized)")
    given = parser.parse_args()
    from experiments.config.compose import as_yaml
    from experiments.pipeline.build import experiment_of
    from experiments.pipeline.own_images import detokenize, read_tokens, tokenizer_for
    from experiments.runtime.files import require_empty
    from lightning_modules.checks import require

    with user_errors():
        if given.print_config:
            print(as_yaml(experiment_of(given.model)), end="")
            return
        require(given.batch_size >= 1, f"--batch-size {given.batch_size}: must be at least 1")
        out = Path(given.out).expanduser()
        require_empty(out)
        tokenizer = tokenizer_for(given.model, given.accelerator)
        source = Path(given.tokens).expanduser()
        if given.dry_run:
            print(f"{out}: {len(read_tokens(source)[0])} images at {tokenizer.image_size} pixels")
            return
        number = detokenize(tokenizer, source, out, given.batch_size)
        print(f"{out}: {number} images")


if __name__ == "__main__":
    main()
