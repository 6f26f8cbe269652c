"""Reading a checkpoint file of this suite."""

from pathlib import Path
from typing import Any

import torch

from experiments.runtime.files import readable
from lightning_modules.archives import check_sums

CHECKPOINT_FORMAT = 1  # of files without this entry too
PARTS = ("experiment", "state_dict")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's plain content. Raises ValueError that names the file for anything but one of ours."""
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such checkpoint; a run keeps its own in RUN_DIR/checkpoints/")
    with readable(path, problem="not readable as a checkpoint"):
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
