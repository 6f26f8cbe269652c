"""Reading a checkpoint file of this suite."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from lightning_modules.archives import check_sums

CHECKPOINT_FORMAT = 1  # also of files without this entry
PARTS = ("experiment", "state_dict")  # of every checkpoint of this suite


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's plain content. Raises ValueError that names the file for anything but a whole checkpoint."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such checkpoint; a run keeps its own in RUN_DIR/checkpoints/")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("cut off, or no checkpoint: a run keeps its own in RUN_DIR/checkpoints/")
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a file that is truncated, foreign or executable
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path}: not readable as a checkpoint ({reason})") from None
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in PARTS):
        raise ValueError(
            f"{path}: not a checkpoint of this suite; a public one is first turned into one by "
            "`python -m experiments.import_checkpoint`"
        )
    if (found := checkpoint.get("format", 1)) != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{path}: checkpoint format {found}, this version reads {CHECKPOINT_FORMAT}: use the version of the suite "
            "that wrote it, or train again"
        )
    return checkpoint
