"""Reading a foreign checkpoint file without running anything that is in it."""

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.importers.family import Tensors
from lightning_modules.archives import readable


class Inert:
    """An empty stand-in for a class that a file names and that is not needed here."""


# What public checkpoints hold beside tensors and plain containers: VQGAN-LC and LlamaGen their arguments, taming (by an
# old Lightning) the class of a callback, as the name of its state. The first is harmless, the second is replaced.
HARMLESS: list[Any] = [argparse.Namespace, (Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]

RESAVE = (
    "import torch, safetensors.torch as s; d = torch.load('FILE', map_location='cpu', weights_only=False)['WRAPPER']; "
    "s.save_file({k: v.clone() for k, v in d.items()}, 'weights.safetensors')"
)


def read_state_dict(path: Path, wrappers: Sequence[str]) -> tuple[Tensors, str]:
    """The state dict in the file, and the one of `wrappers` it was under ("" when the file is nothing else).

    Raises ValueError that names the file and says what to do: it is not there, truncated, holds code, no state dict.
    """
    content = read(path, wrappers)
    if is_own(content):
        raise ValueError(f"{path}: a checkpoint of this suite already; give it to experiments.evaluate as it is")
    wrapper = ""
    if isinstance(content, dict):
        wrapper = next((key for key in wrappers if isinstance(content.get(key), dict)), "")
        content = content[wrapper] if wrapper else content
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: holds no state dict, but {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{path}: '{key}' is {type(value).__name__}, not a tensor: no state dict was found, neither at the top "
                f"nor under {', '.join(wrappers)}"
            )
    return {str(key): value for key, value in content.items()}, wrapper


def is_own(content: Any) -> bool:
    """Whether this is what a checkpoint of this suite holds."""
    return isinstance(content, dict) and {"experiment", "state_dict"} <= content.keys()


def read(path: Path, wrappers: Sequence[str]) -> Any:
    if path.is_dir():
        raise ValueError(f"{path}: a folder; give the checkpoint file that is in it (.ckpt, .pt, .pth or .safetensors)")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        with readable(path, ": truncated? Fetch it again", "not readable as safetensors"):
            tensors = load_file(path)
        return tensors
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(HARMLESS):
            warnings.simplefilter("ignore")
            # The format before torch 1.6 is no zip file and cannot be mapped.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many kinds for a file that is truncated or not its own
        if isinstance(error, pickle.UnpicklingError) and is_pickle(path):
            raise ValueError(refusal(path, wrappers, str(error))) from None
        reason = str(error).split(". ")[0] or type(error).__name__
        raise ValueError(f"{path}: not readable as a checkpoint ({reason}): truncated? Fetch it again") from None


def is_pickle(path: Path) -> bool:
    """Whether the file is in one of torch's two formats, or a bare pickle; any of them could hold code."""
    with path.open("rb") as file:
        return zipfile.is_zipfile(path) or file.read(1) == pickle.PROTO


def refusal(path: Path, wrappers: Sequence[str], error: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", error)
    what = f"it asks for '{match[1]}'" if match else "it is pickled in a way that is not known to be harmless"
    command = RESAVE.replace("FILE", path.name).replace("WRAPPER", wrappers[0])
    return (
        f"{path}: refused, because to load all of it could run code that is in it ({what}). If you trust its source, "
        "save its weights alone, in a place where nothing can be harmed, such as a container without network, and "
        f'import that file: python -c "{command}"'
    )
