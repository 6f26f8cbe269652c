"""Rejects configurations that would fail, or be ignored, after minutes of work: calls every section's `check()`."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from experiments.config.experiment import Experiment
from lightning_modules.quantizers import QuantizerConfig


def check(experiment: Experiment, origin: str) -> None:
    """Raises ValueError that names `origin`, the key and the value at fault."""
    place = f"{origin}: "
    try:
        check_numbers(experiment)
        for path, section in sections(experiment):
            # a quantizer's takes the sizes, with which the tokenizer's calls it
            if hasattr(section, "check") and not isinstance(section, QuantizerConfig):
                place = f"{origin}: {path}"
                section.check()
    except ValueError as error:
        raise ValueError(f"{place}{error}") from None


def sections(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dataclass and all those in it, inner ones first, with "model.loss." before their keys; not `upstream`, which
    has been checked, nor `runtime`, which depends on the machine."""
    for name in (field.name for field in fields(config)):
        if is_dataclass(value := getattr(config, name)) and name not in ("upstream", "runtime"):
            yield from sections(value, f"{path}{name}.")
    yield path, config


def check_numbers(experiment: Experiment) -> None:
    """What the types let pass: infinite numbers, whole ones that no tensor holds, and lists in lists."""
    for path, section in (*sections(experiment), ("runtime.", experiment.runtime)):
        for name, value in vars(section).items():
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, list | dict):
                    raise ValueError(f"{path}{name}={value}: must be a list of numbers")
                if isinstance(item, int | float) and not abs(item) < 2**63:
                    raise ValueError(f"{path}{name}={value} is not a number to compute with")
