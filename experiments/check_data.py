"""Looks at every image of a folder once and lists what is damaged or unusual; trains and changes nothing.

    python -m experiments.check_data --data-dir photos [data.image_size=128 data.class_folders=false ...]

Exit status 1 where an image cannot be read: training would stop there. What is unusual is read, in the way that its
line says (docs/images.md).
"""

import sys
from typing import TYPE_CHECKING

from experiments.runtime import arguments
from experiments.runtime.errors import user_errors

if TYPE_CHECKING:
    from datamodules import ImageFolderDataModule

OWN = {"data": {"name": "image_folder"}, "model": {"name": "vqgan"}}


def main() -> None:
    parser = arguments.parser("check_data", __doc__)
    parser.add_argument("--data-dir", default="data", help="folder of the images (default: data)")
    given = parser.parse_intermixed_args()
    from datamodules import ImageFolderDataModule
    from experiments.config.compose import as_yaml, compose, parse
    from experiments.config.values import from_dotlist
    from experiments.pipeline.build import data_module

    with user_errors():
        runtime = {"runtime": {"data_dir": given.data_dir}}
        experiment = parse(compose(runtime, from_dotlist(given.overrides), OWN), "check_data")
        if given.print_config:
            print(as_yaml(experiment), end="")
            return
        data = data_module(experiment)
        assert isinstance(data, ImageFolderDataModule)
        sys.exit(report(data))


def report(data: "ImageFolderDataModule") -> int:
    """Prints what was found; 1 where an image cannot be read. Raises ValueError or OSError for the folders."""
    from datamodules.scan import lines_of, looks, summary, unusual
    from experiments.runtime.progress import progress

    data.prepare_data()
    total, found = sum(len(files.paths) for files in data.files.values()), []
    with progress("image", total) as show:
        for one in looks(data):
            found.append(one)
            show(1)
    damaged = [one.problem for one in found if one.problem]
    sections = [*summary(data.files, found)]
    groups = unusual(data, found)
    sections += ["unusual:" if groups else "unusual: nothing", *lines_of(groups, data.data_dir)]
    sections += [f"cannot be read: {len(damaged)} of {total:,}", *(f"  {line}" for line in damaged)]
    print("\n".join(sections))
    return int(bool(damaged))


if __name__ == "__main__":
    main()
