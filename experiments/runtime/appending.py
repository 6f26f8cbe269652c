"""Long files of equal rows, a batch of images at a time: saved now and then, continued after a stop or a kill."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from experiments.runtime.progress import progress
from experiments.runtime.signals import StopRequest

SAVE_SECONDS = 10.0  # of work that a kill may cost


def append(
    path: Path, start: int, batches: Iterable[np.ndarray], done: int, total: int, save: Callable[[int], None]
) -> None:
    """Writes `batches`, arrays (B, ...) of one image a row, to the file `path` from byte `start` on.

    Bytes after `start` were written after the last save, and are dropped. `save(number of images)` is called when the
    rows of that many of `total` images are on the disk; `done` are there already. Raises Stopped after a signal, once
    the work done is saved.
    """
    saved = time.monotonic()
    with StopRequest() as stop, open(path, "ab") as file, progress("image", total, done) as show:
        file.truncate(start)
        for batch in batches:
            file.write(batch.tobytes())
            done += len(batch)
            if stop.number or done == total or time.monotonic() - saved >= SAVE_SECONDS:
                file.flush()
                os.fsync(file.fileno())  # the rows are on the disk before they are counted
                save(done)
                saved = time.monotonic()
                stop.check(f"{done:,} of {total:,} images are done in {path}")
            show(len(batch))
