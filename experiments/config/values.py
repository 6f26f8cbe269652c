"""Plain nested values: read from YAML and from key=value, merged, flattened, and mistakes in them explained."""

import copy
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The YAML file as a plain dictionary. Raises ValueError that names the file."""
    if not Path(path).is_file():
        near = difflib.get_close_matches(Path(path).name, [p.name for p in Path(path).parent.glob("*.yaml")], 1)
        raise ValueError(f"{path}: no such file" + (f"; did you mean {near[0]}?" if near else ""))
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except Exception as error:  # YAML and OmegaConf raise many kinds; each means that the file cannot be read
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold `key: value` lines")
    return cast(dict[str, Any], content)


def from_dotlist(overrides: Sequence[str]) -> dict[str, Any]:
    """["a.b=1"] -> {"a": {"b": 1}}. Raises ValueError for an argument that is not key=value."""
    for item in overrides:
        key, separator, _ = item.partition("=")
        if not separator or not key:
            raise ValueError(f"'{item}': expected key=value, for example trainer.max_steps=100")
    try:
        return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides))))
    except Exception as error:
        raise ValueError(f"{' '.join(overrides)}: {' '.join(str(error).split())}") from None


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later layers win, key by key; a new dictionary that shares no part with them."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            if isinstance(value, dict):
                before = merged.get(key)
                merged[key] = merge(before, value) if isinstance(before, dict) else merge(value)
            else:
                merged[key] = copy.deepcopy(value)
    return merged


def select(values: dict[str, Any], key: str) -> Any:
    """The value at "a.b"; None where there is none."""
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return None
        values = values[part]
    return values


def explain(error: Exception, base: DictConfig, values: dict[str, Any]) -> str:
    """One line: the key at fault, what is wrong, and the nearest existing key."""
    message = " ".join(str(error).split("full_key:")[0].split())
    key = (getattr(error, "full_key", None) or "").split("[")[0]  # the element of a list -> the list
    known = list(flatten(OmegaConf.to_container(base)))
    for given in flatten(values):
        if below := [k for k in known if k.startswith(f"{given}.")]:
            return f"'{given}' is a section: set keys in it, such as {below[0]}"
    if key and key not in known and not any(k.startswith(f"{key}.") for k in known):
        leaf = key.rsplit(".", 1)[-1]
        near = difflib.get_close_matches(key, known, 1, 0.5) or [k for k in known if k.rsplit(".", 1)[-1] == leaf]
        return f"unknown key '{key}'" + (f"; did you mean '{near[0]}'?" if near else "")
    if isinstance(error, TypeError):
        message = "a list stands where `key: value` lines belong, or the other way round"
    return f"{key}: {message}" if key else message


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(values, dict):
        return {prefix: values}
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return out
