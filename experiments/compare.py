"""Compares runs on one page that needs no network: configuration, metrics, curves, use of the codes, the same images.

    python -m experiments.compare runs/experiments/A runs/experiments/B --out page.html [--images photos/]

Tables sort by a click on a head; the slider enlarges all images at once. Without --images the first validation images
are shown, read from where the run has read them (--data-dir: from elsewhere).
"""

from pathlib import Path

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors


def main() -> None:
    parser = arguments.plain("compare", __doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs, OUT/experiments/RUN")
    parser.add_argument("--out", default="comparison.html", help="the page to write (default: comparison.html)")
    parser.add_argument("--images", nargs="+", default=[], metavar="PATH", help="image files and folders to show")
    parser.add_argument("--data-dir", help="folder of the images (default: that of each run's training)")
    arguments.add_dry_run(parser)
    given = parser.parse_args()
    from datamodules.files import image_files
    from experiments.pipeline.comparison import letters, page_title, sections
    from experiments.pipeline.page import write_page
    from experiments.pipeline.run_folders import read_run
    from lightning_modules.checks import require

    with user_errors():
        out, files = Path(given.out).expanduser(), image_files(given.images) if given.images else []
        require(not out.is_dir(), f"--out {out}: is a folder; name the page to write")
        runs = [read_run(folder) for folder in given.runs]
        if given.data_dir:
            for run in runs:
                run.experiment.runtime.data_dir = given.data_dir
        if given.dry_run:
            print(f"would be written: {out}, of {', '.join(run.name for run in runs)}")
            return
        write_page(out, page_title(runs), sections(runs, letters(runs), files))
        print(out)


if __name__ == "__main__":
    main()
