"""Renders the tables of a sweep from finished result records; never trains.

python -m sweeps.table sweeps/ablation_codebook.yaml --scale reduced
"""

import sys

from sweeps.arguments import parser_of


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "table",
        "sweep, for example sweeps/ablation_codebook.yaml; more may follow",
        description="Render the tables of sweeps as Markdown, LaTeX and PNG from finished records, "
        "one table for each data set that was used. Nothing is trained; the cell of a missing run stays empty.",
    )
    parser.add_argument("--out", help="folder of the tables (default: OUTPUT_DIR/tables)")
    options = parser.parse_intermixed_args(arguments)
    from sweeps.tables import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
