"""What commands have in common on the command line. Options may stand between keys: `parse_intermixed_args`."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any

from experiments.config import plugins
from lightning_modules.checks import home_expanded

PATH = re.compile(r"((?:--[\w-]+=)?)(~(?:/.*)?)", re.DOTALL)


class Parser(argparse.ArgumentParser):
    """Where an argument, or the value after an option's "=", begins with ~, the home folder is meant.

    Every command has --import. An option is written out: of a command without --out, that is not its --output-dir.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        help = "with your own quantizer, backbone, data set, ...: docs/plugins.md"
        self.add_argument("--import", action="append", type=plugins.load, dest="imports", metavar="MODULE", help=help)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_args(self.expanded(args), namespace)

    def parse_known_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        return super().parse_known_intermixed_args(self.expanded(args), namespace)  # not by the above from 3.12.8 on

    def expanded(self, args: Sequence[str] | None) -> list[str]:
        words = [PATH.fullmatch(word) or word for word in (sys.argv[1:] if args is None else args)]
        try:
            return [word if isinstance(word, str) else word[1] + home_expanded(word[2]) for word in words]
        except ValueError as error:
            self.error(str(error))


COMMAND = "vq-image-modeling"
PROGRAM = "python -m experiments."  # before the name of a command, in its help; or COMMAND, where that was typed


FITS = ("crop", "pad")  # see datamodules/files.py: frame


def of_recipe(name: str, doc: str | None, optional: bool = False) -> argparse.ArgumentParser:
    """Of `python -m experiments.NAME FILE [key=value ...]`."""
    return parser(name, doc, optional, file="a recipe's name, such as vqgan_lc_cifar10, or the path of a YAML file")


def of_checkpoint(name: str, doc: str | None, optional: bool = False) -> argparse.ArgumentParser:
    """Of `python -m experiments.NAME CHECKPOINT [key=value ...]`, for `pipeline.upstream.restore_for`."""
    made = parser(name, doc, optional, checkpoint="a run's folder, a checkpoint, or an exported folder")
    made.add_argument("--data-dir", default="data", help="folder of the images (default: data)")
    made.add_argument("--output-dir", help="where a run's upstream, tokens, ... are (default: the run's own)")
    return made


def of_model(name: str, doc: str | None, in_batches: bool = True) -> argparse.ArgumentParser:
    """Of `python -m experiments.NAME MODEL ...`, which uses a trained model as it is: no keys."""
    made = plain(name, doc)
    add_print_config(made)
    made.add_argument("model", metavar="MODEL", help="a run's folder, a checkpoint, an exported folder or a hub id")
    if in_batches:
        made.add_argument("--batch-size", type=int, default=64, help="images at a time (default: 64)")
        made.add_argument("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    return made


def plain(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Without arguments; `doc`, the command's docstring, is its help."""
    form = argparse.RawDescriptionHelpFormatter
    return Parser(prog=f"{PROGRAM}{name}", description=doc, formatter_class=form)


def parser(name: str, doc: str | None, optional: bool = False, **positional: str) -> argparse.ArgumentParser:
    """With the arguments `positional`, each with its meaning, before the keys; `optional`: they may be left out."""
    made = plain(name, doc)
    add_print_config(made)
    for argument, meaning in positional.items():
        made.add_argument(argument, help=meaning, nargs="?" if optional else None)
    made.add_argument("overrides", nargs="*", metavar="key=value", help="for example data.val_size=1000")
    return made


def add_print_config(made: argparse.ArgumentParser) -> None:
    made.add_argument("--print-config", action="store_true", help="print the whole configuration as YAML, do nothing")


def add_dry_run(made: argparse.ArgumentParser) -> None:
    made.add_argument("--dry-run", action="store_true", help="check all that can be checked, say what would be done")


def add_data(made: argparse.ArgumentParser) -> None:
    made.add_argument("--data", default="auto", help="auto | cifar10 | shapes | image_folder (default: auto)")
