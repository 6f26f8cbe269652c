"""Trains the cells of a sweep that have no result record yet, then renders its tables.

python -m sweeps.run sweeps/ablation_codebook.yaml --scale quick

Of several sweeps, and of several seeds, all cells of the first seed come first: a command that is stopped leaves whole
seeds.
"""

import sys
from argparse import BooleanOptionalAction

from experiments.runtime.errors import user_errors
from sweeps.arguments import parse_training, parser_of


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "run",
        "sweep, for example sweeps/ablation_codebook.yaml; more may follow",
        description="Train the cells of sweeps that have no result record yet, then render its tables. All cells are "
        "checked before the first is trained. Stopped (Ctrl-C) or killed, the same command continues; a finished cell "
        "is never trained again, whichever sweep asks for it.",
        epilog="Several machines share a sweep when they run this command with the same --storage postgresql://... or "
        "the same --output-dir on a shared disk whose locks can be trusted: docs/sweeps.md. Keys are those of the "
        "experiment files, for example trainer.precision=bf16-mixed, and apply to every cell.",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CELLS",
        help="only rows of these heads, label or TABLE/label: 'quantizer=LC', 'LC K=*', 'latent/*'; may be given again",
    )
    parser.add_argument(
        "--evaluate-later",
        action="store_true",
        help="train, and only keep the weights, a few MB a cell, in OUTPUT_DIR/weights; where these are, the same "
        "command without this option evaluates them",
    )
    parser.add_argument("--evaluate-only", action="store_true", help="only cells whose weights are kept")
    parser.add_argument(
        "--keep-weights", action="store_true", help="also keep such weights of cells that are evaluated"
    )
    parser.add_argument(
        "--published",
        action=BooleanOptionalAction,
        default=True,
        help="whether cells of published records are finished (default: yes; the records hold no weights)",
    )
    options = parse_training(parser, arguments)
    for option in ("evaluate_later", "keep_weights"):
        options.overrides += [f"runtime.{option}=true"] if getattr(options, option) else []
    from sweeps.sweep import run

    with user_errors():
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
