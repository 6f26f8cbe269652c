"""Result records: one JSON file a finished run, the only source of every table.

A record holds the full configuration, the metrics with their protocol ids, and what it ran on. Finished runs live
in `runs/records/`; the ones that the repository publishes live in `sweeps/records/`. Both are searched.
"""

import json
import os
import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.config.experiment import Experiment
from experiments.runtime import code_version
from lightning_modules.archives import readable

FORMAT = 1
PUBLISHED = Path(__file__).resolve().parents[2] / "sweeps" / "records"
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "lpips")

Record = dict[str, Any]


def record_path(directory: Path, experiment: Experiment, data_id: str) -> Path:
    return directory / f"{experiment.digest()}.{data_id}.json"


def images_id(data_id: str) -> str:
    """The part of a run's data id that names its images, which the rows of a table have in common."""
    return data_id.partition("+")[0]


def data_name(data_id: str) -> str:
    """A data id without its fingerprint, for captions and file names: cifar10-export of cifar10-export-1a2b3c4d."""
    return re.sub("-[0-9a-f]{8}$", "", images_id(data_id))


KINDS = {"format": int, "config": dict, "data_id": str, "metrics": dict, "protocols": dict}


def read_record(path: Path) -> Record:
    """Raises ValueError that names the file when it is not a whole record."""
    with readable(path, "; delete it to run the cell again", "not a readable result record"):
        record = json.loads(path.read_text())
    record = record if isinstance(record, dict) else {}
    if missing := KINDS.keys() - record.keys():
        raise ValueError(f"{path}: a result record without {', '.join(sorted(missing))}; delete it")
    wrong = [key for key, kind in KINDS.items() if not isinstance(record[key], kind)]
    if not wrong:
        wrong = [name for name, value in record["metrics"].items() if not isinstance(value, int | float)]
    if wrong or not isinstance(record.get("environment", {}), dict):
        raise ValueError(f"{path}: damaged at {', '.join(wrong) or 'environment'}; delete it to run the cell again")
    return record


def find_records(experiment: Experiment, directories: Sequence[Path]) -> dict[str, Record]:
    """The finished records of this very experiment, by data id; the first directory that has one wins."""
    found: dict[str, Record] = {}
    for directory in directories:
        for path in sorted(directory.glob(f"{experiment.digest()}.*.json")):
            record = read_record(path)
            if record["data_id"] not in found and same_experiment(record, experiment):
                found[record["data_id"]] = record
    return found


def same_experiment(record: Record, experiment: Experiment) -> bool:
    """Whether the record is of all that decides this experiment's numbers, but for the images."""
    return not experiment.differences(record["config"])


def environment() -> dict[str, Any]:
    """Versions, commit, behaviour of the code, and machine, for the record.

    With what precision, memory format and compilation the networks ran there is in the record's `config.trainer`.
    """
    return {
        "commit": code_version.git("rev-parse", "HEAD"),
        "dirty": code_version.is_changed(),
        "code": code_version.CODE,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        **{package: version(package) for package in PACKAGES},
    }


def cpu_name() -> str:
    """The model of the CPU, as Linux or else Python names it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor()
