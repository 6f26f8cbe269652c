"""Searches the best values of a few keys of one recipe: Optuna's TPE, with a median pruner.

python -m sweeps.search sweeps/search_vqgan_lc.yaml --scale quick --trials 20
"""

import sys

from experiments.runtime.errors import user_errors
from sweeps.arguments import parse_training, parser_of


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "search",
        "search, for example sweeps/search_vqgan_lc.yaml",
        has_seeds=False,
        description="Search the best values of some keys of a recipe by Optuna's TPE; a median pruner ends trials that "
        "are worse than usual. Then, and when there is nothing to do, a table and pictures of the trials are written.",
        epilog="Stopped or killed, the same command continues; with more --trials it goes on from what it knows. Any "
        "number of workers and machines share a search, as they do a sweep: docs/sweeps.md.",
    )
    parser.add_argument("--trials", type=int, default=0, help="trials in all (default: as the file says)")
    options = parse_training(parser, arguments)
    from sweeps.study import run

    with user_errors():
        return run(options)


if __name__ == "__main__":
    sys.exit(main())
