"""Writes the verdicts on the papers' claims and the tables of sweeps as one page that needs no network; trains nothing.

python -m sweeps.report sweeps/ablation_codebook.yaml --scale cifar --out report.html
"""

import sys

from sweeps.arguments import parser_of


def main(arguments: list[str] | None = None) -> int:
    parser = parser_of(
        "report",
        "sweep, for example sweeps/ablation_codebook.yaml; more may follow",
        description="Write the verdicts on the papers' claims and the tables of sweeps, from finished records, as one "
        "HTML page that needs no network. Tables sort by a click on a head.",
    )
    parser.add_argument("--out", help="the page to write (default: OUTPUT_DIR/report.html)")
    options = parser.parse_intermixed_args(arguments)
    from sweeps.report_page import run

    return run(options)


if __name__ == "__main__":
    sys.exit(main())
