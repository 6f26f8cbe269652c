"""Classes of one's own: `--import MODULE` imports what puts them into the suite's tables (docs/plugins.md)."""

import argparse
import hashlib
import os
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

OURS = ("lightning_modules", "datamodules")
imported: list[str] = []  # by `load`, for the commands that this one starts


def load(name: str) -> str:
    """Imports a module that is installed or in the working folder. Raises ArgumentTypeError where there is none."""
    if os.getcwd() not in sys.path:  # the console command's lacks it
        sys.path.append(os.getcwd())
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise argparse.ArgumentTypeError(
            f"no module '{name}' is installed or in the working folder; give its name, such as my_module, not its file"
        ) from None
    if name not in imported:
        imported.append(name)
    return name


def plugged_in(classes: Iterable[type]) -> str:
    """ "my_module@3f2a91c0": the modules of `classes` that are not this suite's, with a hash of each file."""
    names = sorted({cls.__module__ for cls in classes if cls.__module__.partition(".")[0] not in OURS})
    return ", ".join(f"{name}@{source_hash(name)}" for name in names)


def source_hash(name: str) -> str:
    """8 hex digits of the imported module's file."""
    source = getattr(sys.modules[name], "__file__", None)
    return hashlib.sha256(Path(source).read_bytes() if source else b"").hexdigest()[:8]
