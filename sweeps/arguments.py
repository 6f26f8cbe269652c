"""What the commands of `sweeps` have in common on the command line."""

import argparse
import os
import sys

from experiments.runtime.arguments import Parser, add_dry_run, add_print_config


def parser_of(command: str, file: str, has_seeds: bool = True, **texts: str) -> argparse.ArgumentParser:
    """Of a command that takes a file, such as a sweep, and changes to its experiments.

    The options name the runs: taken by all commands of `sweeps`, so that one set of words names one set of cells.
    """
    parser = Parser(prog=f"python -m sweeps.{command}", **texts)
    parser.add_argument("file", help=file)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to every experiment")
    parser.add_argument("--scale", default="quick", help="quick | reduced | cifar | paper (default: quick)")
    parser.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
    parser.add_argument("--data-dir", default="data", help="folder of the data sets (default: data)")
    parser.add_argument("--output-dir", default="runs", help="records, checkpoints, tables (default: runs)")
    add_dry_run(parser)
    if has_seeds:
        parser.add_argument("--seeds", default="", help="0,1,2 or a count (default: as the scale says)")
    return parser


def parse_training(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command that trains, with those of its workers, and its `arguments` as they are."""
    parser.add_argument(
        "--storage",
        default=os.environ.get("STORAGE") or "journal",  # the environment's password is in no list of processes
        help="journal (a file in --output-dir) or a database URL (default: $STORAGE, or journal)",
    )
    add_print_config(parser)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the cells (default: 1)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="stop after these: nothing begins that would take longer, as others took (default: 0, no limit)",
    )
    parser.add_argument("--as-worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    return parser.parse_intermixed_args(arguments, argparse.Namespace(arguments=arguments))
