"""Writes a folder of tokens or latents (see `datamodules/token_files.py`), and continues where it was stopped.

What each batch becomes is appended; now and then the file is flushed and a small state file says how many are done.
Shapes: B images a batch, N of a split, V views of each.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from datamodules import ImageDataModule
from datamodules.base import keep_batch
from datamodules.placing import loader_processes
from datamodules.token_files import SPLITS, EncodedMeta, LatentMeta, TokenMeta, labels_path, read_meta, values_path
from datamodules.views import ViewDataset
from experiments.config.experiment import Experiment, RuntimeConfig
from experiments.config.identity import digest_of, identity
from experiments.pipeline.encode import encode_batch
from experiments.runtime.appending import append
from experiments.runtime.files import locked, require_space, write_json
from lightning_modules.archives import readable
from lightning_modules.frozen import freeze
from lightning_modules.tokenizer import Tokenizer

OF_TRAINING = ("batch_size", "flip", "random_crop")  # data options that change no token and no latent


@dataclass
class Job:
    """All that decides the tokens or latents, already checked.

    A continued job is byte-equal to an uninterrupted one of the same `batch_size`. With another batch size kernels
    round differently, and a latent that is equally near to two codes may take the other one.
    """

    meta: EncodedMeta
    sources: dict[str, ViewDataset]  # by split
    tokenizer: Tokenizer  # frozen, on the device to use
    batch_size: int  # images, each in all its views
    runtime: RuntimeConfig

    @property
    def folder(self) -> Path:
        """Where they are kept, named by tokenizer, weights, images and views."""
        name = f"{self.meta.tokenizer_digest}-{digest_of(asdict(self.meta))[:8]}"
        return Path(self.runtime.output_dir) / self.meta.kind / name


def make_job(
    experiment: Experiment,
    tokenizer: Tokenizer,
    tokenizer_digest: str,
    data: ImageDataModule,
    sources: dict[str, ViewDataset],
    batch_size: int = 64,
    latents: str = "",
) -> Job:
    """The job of encoding `sources`, made of the images of `data`, with `tokenizer`, which is frozen.

    `latents`: float32 or float16, to keep latents as that; "" = keep tokens.
    """
    of_kind: dict[str, Any] = {"codebook_size": experiment.tokenizer.codebook_size}
    if latents:
        of_kind = {"code_dim": experiment.tokenizer.code_dim, "stored": latents}
    kind: Any = LatentMeta if latents else TokenMeta
    meta = kind(
        **of_kind,
        tokenizer_digest=tokenizer_digest,
        model=experiment.model.name,
        precision=experiment.trainer.precision,
        grid_size=list(tokenizer.encoder.grid),
        data_id=data.data_id,
        data={key: value for key, value in identity(experiment.data).items() if key not in OF_TRAINING},
        num_classes=data.num_classes,
        num_images={split: len(source) for split, source in sources.items()},
        views={split: list(source.views) for split, source in sources.items()},
        labels_sha256={s: hashlib.sha256(labels_of(source).tobytes()).hexdigest() for s, source in sources.items()},
    )
    return Job(meta, sources, freeze(tokenizer), batch_size, experiment.runtime)


def labels_of(source: ViewDataset) -> np.ndarray:
    return source.images.labels.numpy()  # type: ignore[attr-defined]


def is_finished(folder: Path, meta: EncodedMeta) -> bool:
    """Raises ValueError when the folder holds what something else was encoded to."""
    if not (folder / "meta.json").is_file():
        return False
    if (found := replace(read_meta(folder, type(meta)), sha256={})) != meta:
        raise ValueError(
            f"{folder}: holds other {meta.kind} ({differences(asdict(found), meta)}): choose another --out"
        )
    return True


def differences(found: dict[str, Any], wanted: EncodedMeta) -> str:
    """The first two of them, in words; "" = none."""
    differ = [(key, value) for key, value in asdict(wanted).items() if found.get(key) != value]
    return ", ".join(f"{key} {found.get(key)} instead of {value}" for key, value in differ[:2])


def write_encoded(job: Job, folder: Path, waits: bool = False) -> bool:
    """Encodes what is missing in `folder`; False when nothing was. One process at a time; this one `waits`.

    Raises ValueError: the folder holds, or a running process writes, something else; the disk is too small.
    """
    if is_finished(folder, job.meta):
        return False
    with locked(folder.with_name(f"{folder.name}.lock"), f"is writing these {job.meta.kind}", waits, "wait for it"):
        if is_finished(folder, job.meta):  # by that process, a moment ago
            return False
        folder.mkdir(exist_ok=True)
        done = resume_point(job, folder)
        missing = sum((len(s) - done[k]) * job.meta.row_bytes(k) + len(s) * 8 for k, s in job.sources.items())
        require_space(folder, missing, f"the {job.meta.kind} need")
        for split in SPLITS:
            encode_split(job, folder, split, done)
        finish(job, folder)
    return True


def resume_point(job: Job, folder: Path) -> dict[str, int]:
    """Images done, by split: whole batches that are on disk."""
    path = folder / "state.json"
    if not path.is_file():
        for split in SPLITS:
            if (file := values_path(folder, split)).is_file() and file.stat().st_size:
                raise ValueError(f"{file}: not made by this command, which would overwrite it: choose another --out")
        save_state(job, folder, dict.fromkeys(SPLITS, 0))
    with readable(path, f": delete {folder}"):
        state = json.loads(path.read_text())
        meta, counts = dict(state["meta"]), {split: int(state["done"][split]) for split in SPLITS}
    if differ := differences(meta, job.meta):
        raise ValueError(
            f"{folder}: holds a half of other {job.meta.kind} ({differ}): delete it or choose another --out"
        )
    done = {}
    for split, images in counts.items():
        file = values_path(folder, split)
        on_disk = file.stat().st_size // job.meta.row_bytes(split) if file.is_file() else 0
        done[split] = images if on_disk >= images else on_disk // job.batch_size * job.batch_size
    return done


def save_state(job: Job, folder: Path, done: dict[str, int]) -> None:
    write_json(folder / "state.json", {"meta": asdict(job.meta), "done": done})


@torch.inference_mode()
def encode_split(job: Job, folder: Path, split: str, done: dict[str, int]) -> None:
    """Appends what the images become after the first done[split], which it counts up."""
    source, meta = job.sources[split], job.meta
    rest: Sequence[int] = range(done[split], len(source))
    workers = loader_processes(job.runtime.num_workers, source.images, job.tokenizer.device)
    loader = DataLoader(Subset(source, rest), job.batch_size, num_workers=workers, collate_fn=keep_batch)

    def save(images: int) -> None:
        done[split] = images
        save_state(job, folder, done)

    start = done[split] * meta.row_bytes(split)
    rows = (encoded(job, batch["image"]) for batch in loader)
    append(values_path(folder, split), start, rows, done[split], len(source), save)


def encoded(job: Job, images: torch.Tensor) -> np.ndarray:
    """(B, V, 3, H, W) -> (B, V, T) or (B, V, d, h, w)."""
    flat, kind = images.flatten(0, 1).to(job.tokenizer.device), job.meta.kind
    values = encode_batch(job.tokenizer, {"image": flat}, job.meta.precision, kind)[kind]
    return values.unflatten(0, images.shape[:2]).cpu().numpy().astype(job.meta.dtype)


def finish(job: Job, folder: Path) -> None:
    """Labels and hashes; meta.json last. The folder is finished when that is there."""
    hashes = {}
    for split in SPLITS:
        np.save(labels_path(folder, split), labels_of(job.sources[split]))
        for path in (values_path(folder, split), labels_path(folder, split)):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    write_json(folder / "meta.json", asdict(replace(job.meta, sha256=hashes)))
    for path in (folder / "state.json", *folder.glob(".*.json.*")):  # and what a kill within write_json left
        path.unlink(missing_ok=True)
