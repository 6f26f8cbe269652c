"""Computes from result records which conclusions of the papers hold, and writes docs/claims.md; never trains.

python -m sweeps.claims

`sweeps/claims.yaml` states the claims, `sweeps/predicates.py` their language. README.md and docs/results.md quote the
verdicts, the first pictures and the list of tables between marks, which are filled anew, too.
"""

import sys
from pathlib import Path

from experiments.runtime.arguments import Parser, add_dry_run
from experiments.runtime.errors import user_errors


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(prog="python -m sweeps.claims", description="Verdicts on the papers' conclusions.")
    parser.add_argument("file", nargs="?", type=Path, help="claims (default: the suite's sweeps/claims.yaml)")
    parser.add_argument("--scale", default="", help="one scale, instead of the one with most records for each claim")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("runs"), help="its records count as well (default: runs)"
    )
    parser.add_argument(
        "--root", type=Path, help="where docs/claims.md and the quoting pages are (default: beside this suite)"
    )
    add_dry_run(parser)
    options = parser.parse_args(arguments)
    from sweeps.verdicts import run

    with user_errors():
        run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
