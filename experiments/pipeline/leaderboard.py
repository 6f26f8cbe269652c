"""Tokenizers of any origin measured by one protocol: the same images, metrics and precision, by training's own code.

A model's own file says what it is, not how it is measured: its data section, metrics and losses are left aside.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch

from experiments.config.compose import parse
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of
from experiments.config.values import merge, select
from experiments.importers import FAMILIES, Options
from experiments.importers.convert import read_public
from experiments.importers.files import is_own, read
from experiments.pipeline.build import build_model
from experiments.pipeline.evaluation import measure
from experiments.pipeline.inputs import Seen, images_of
from experiments.runtime import code_version
from experiments.runtime.errors import is_disk_full
from experiments.runtime.files import write_json
from experiments.runtime.ranks import check_accelerator
from lightning_modules.archives import readable, weights_hash
from lightning_modules.checks import require
from lightning_modules.losses import LossConfig
from lightning_modules.pretrained import CONFIG, fill, load_checkpoint

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
RECORD_KEYS = {"family", "codebook_size", "code_dim", "grid", "image_size", "metrics", "protocols"}
COLUMNS = {"rfid": ".4g", "lpips": ".4f", "psnr": ".2f", "ssim": ".4f", "usage/val": ".1f"}  # metric: format


class Row(NamedTuple):
    name: str  # of the file or folder
    record: dict[str, Any]


def models_in(folder: Path) -> list[Path]:
    """Files of weights, runs and exported folders at any depth, in the order of their names. Raises ValueError."""
    require(folder.is_dir(), f"{folder}: no such folder; CHECKPOINTS names one that holds checkpoints")
    found, seen = list[Path](), {folder.resolve()}

    def look(path: Path) -> None:
        if path.name.startswith("."):
            return
        if path.is_file():
            found.extend([path] if path.suffix in SUFFIXES else [])
        elif is_own_folder(path):
            found.append(path)
        elif path.is_dir() and path.resolve() not in seen:  # a link may lead in a circle
            seen.add(path.resolve())
            for child in sorted(path.iterdir()):
                look(child)

    for child in sorted(folder.iterdir()):
        look(child)
    require(bool(found), f"{folder}: holds no checkpoint ({', '.join(SUFFIXES)}), run or exported folder")
    return found


def is_own_folder(path: Path) -> bool:
    """A run's folder or an exported one. A public model may also have a config.json beside its weights."""
    if (path / CONFIG).is_file():
        return '"experiment"' in (path / CONFIG).read_text(errors="replace")
    return any((path / "checkpoints" / name).is_file() for name in ("final.ckpt", "last.ckpt"))


def read_model(path: Path, folder: Path, options: Options) -> dict[str, Any]:
    """The checkpoint at `path`, imported if it is a public one: as the folder between it and `folder` is named where
    that is a family, else by its keys. Raises ValueError."""
    if path.is_dir() or is_own(read(path, ["state_dict"])):
        return load_checkpoint(path)
    parts = path.relative_to(folder).parts[:-1]
    return read_public(next((part for part in parts if part in FAMILIES), ""), path, options)[0]


def experiment_of(checkpoint: dict[str, Any], path: Path, settings: dict[str, Any]) -> Experiment:
    """The model as it is, on the images and with the metrics of `settings`. Raises ValueError unless a tokenizer."""
    stored = checkpoint["experiment"]
    laplace = select(stored, "model.loss.logit_laplace")
    require(laplace is not None, f"{path}: holds a '{select(stored, 'model.name')}', not a tokenizer")
    own = {key: value for key, value in stored["model"].items() if key not in ("metrics", "loss", "optimizer")}
    loss = {"loss": asdict(LossConfig(l2=1.0, logit_laplace=laplace))}  # which decides what the decoder gives
    data = {"data": {"image_size": stored["data"]["image_size"]}}
    return parse(merge({"model": own | loss}, data, settings), str(path))


def row_of(
    path: Path, folder: Path, options: Options, settings: dict[str, Any], out: Path, seen: Seen, dry_run: bool
) -> Row | None:
    """Of the model at `path`, from its record in `out` where one is there, else measured now, unless `dry_run`.

    Raises ValueError.
    """
    name, checkpoint = str(path.relative_to(folder)), read_model(path, folder, options)
    experiment = experiment_of(checkpoint, path, settings)
    data_id, weights = images_of(experiment, seen).data_id, weights_hash(checkpoint["state_dict"])
    record = out / f"{digest_of([experiment.digest(), data_id, weights, code_version.CODE])}.json"
    if record.is_file():
        with readable(record, ": delete it, and it is made again"):
            content = json.loads(record.read_text())
            require(content.keys() >= RECORD_KEYS, "lacks keys")
        return Row(name, content)
    module, model = build_model(experiment), experiment.tokenizer
    fill(module, checkpoint, path)
    if dry_run:
        return None
    metrics, _ = measure(experiment, module)
    content = {
        "family": checkpoint.get("imported", {}).get("family", "this suite"),
        "codebook_size": model.codebook_size,
        "code_dim": model.code_dim,
        "grid": list(module.encoder.grid),
        "image_size": experiment.data.image_size,
        "metrics": metrics,
        "protocols": module.protocols(),
        "data_id": data_id,
        "weights": weights,
        "config": experiment.identity(),
    }
    write_json(record, content)
    return Row(name, content)


def measure_all(
    folder: Path, options: Options, settings: dict[str, Any], out: Path, dry_run: bool = False
) -> tuple[list[Row], dict[str, str], str]:
    """Rows of all models in `folder`, the reasons of those that have none by name, and the id of the images.

    Raises ValueError or OSError for the folder or the images.
    """
    paths, seen, rows, failures = models_in(folder), Seen(), list[Row](), dict[str, str]()
    plain = parse(merge({"model": {"name": "vqgan"}}, settings), "settings")
    check_accelerator(plain.runtime)
    images = images_of(plain, seen)
    for number, path in enumerate(paths, 1):
        name = str(path.relative_to(folder))
        print(f"[{number}/{len(paths)}] {name}", flush=True)
        try:
            row = row_of(path, folder, options, settings, out, seen, dry_run)
            rows += [row] if row else []
            if dry_run:
                print("  measured earlier" if row else "  to be measured", flush=True)
        except (ValueError, OSError, FloatingPointError, torch.OutOfMemoryError) as error:
            if isinstance(error, OSError) and is_disk_full(error):
                raise
            failures[name] = " ".join(str(error).split()).removeprefix(f"{path}: ")
            print(f"  not measured: {failures[name]}", flush=True)
    return rows, failures, images.data_id


def page(rows: Sequence[Row], failures: dict[str, str], data_id: str) -> str:
    """Markdown: a row a model, the best rFID first; then how it was measured, and what could not be."""
    heads = {"rfid": head_of_rfid(rows), "usage/val": "util %"}
    table = [["model", "from", "codes", "tokens", "pixels", *(heads.get(key, key.upper()) for key in COLUMNS)]]
    for name, record in sorted(rows, key=lambda row: row.record["metrics"].get("rfid", float("inf"))):
        height, width = record["grid"]
        codes = f"{record['codebook_size']:,} x {record['code_dim']}" if record["codebook_size"] else "none"
        numbers = [
            format(record["metrics"][key], form) if key in record["metrics"] else "-" for key, form in COLUMNS.items()
        ]
        table.append([name, record["family"], codes, f"{height} x {width}", str(record["image_size"]), *numbers])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    used = sorted({row.record["protocols"][key] for row in rows for key in COLUMNS if key in row.record["protocols"]})
    parts = [f"# Tokenizers on {data_id}", "\n".join(lines)]
    if used:
        parts.append("Protocols: " + ", ".join(f"`{one}`" for one in used) + ".")
    if failures:
        parts.append("\n".join(["Not measured:", "", *(f"- `{name}`: {reason}" for name, reason in failures.items())]))
    return "\n\n".join(parts) + "\n"


def head_of_rfid(rows: Sequence[Row]) -> str:
    """FID is Inception's; another extractor's distance has its name."""
    found = (re.match(r"rfid/([^@/]+)", row.record["protocols"].get("rfid", "")) for row in rows)
    others = {match[1] for match in found if match} - {"inception-v3-compat"}
    return f"rFD ({', '.join(sorted(others))})" if others else "rFID"
