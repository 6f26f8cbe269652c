"""Trained models as files: the checkpoints of a run, and exported folders.

An exported folder holds what is needed to use a model and to know what it is:

    config.json         the checkpoint without its weights (`KEPT`), and a hash of the weights
    model.safetensors   the weights, without those of the discriminator
    README.md           a model card: metrics with their protocol ids, and how to load it
    tokenizer/          of a prior: the tokenizer of its tokens, another such folder
"""

import json
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_modules.archives import DISCRIMINATOR, check_sums, readable, weights_hash
from lightning_modules.frozen import freeze
from lightning_modules.model_card import model_card, record_of

CHECKPOINT_FORMAT = 1  # of files without this entry too
PARTS = ("experiment", "state_dict")
CONFIG, WEIGHTS, CARD, BELOW = "config.json", "model.safetensors", "README.md", "tokenizer"
MEASURED = ("metrics", "protocols")
KEPT = (
    "format",
    "experiment",
    "data_id",
    "images",
    "sizes",
    "generator_steps",
    "tokenizer_digest",
    "imported",
    *MEASURED,
)
HUB_ID = r"[\w.-]+/[\w.-]+"


class Pretrained(L.LightningModule):
    """What all models can do with files. A subclass is a `Module` (lightning_modules/base.py)."""

    origin: Mapping[str, Any] = {}  # of a restored model: its checkpoint without weights (`KEPT`)
    source: Path | None = None  # and the file or folder that it was read from
    is_changed = False  # whether it was trained since

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """The trained model, frozen, in eval mode, without what only training and evaluation need.

        Args:
            path: a run's folder, a checkpoint, an exported folder, or a hub id (which takes `huggingface_hub`).

        Raises:
            ValueError: the file is missing, damaged, of another version, or holds another kind of model.
        """
        return freeze(load(cls, path, for_use=True))

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **options: Any) -> Self:
        """The whole module of a checkpoint, to train or validate it further; its configuration is in the file.

        `options`, those of Lightning: only `map_location`, a device, has an effect.
        """
        module, device = load(cls, checkpoint_path, for_use=False), options.get("map_location")
        return module if device is None else module.to(device)

    def on_train_start(self) -> None:
        """A restored model is no more what its file says of its steps and metrics."""
        self.origin = {key: value for key, value in self.origin.items() if key not in ("generator_steps", *MEASURED)}
        self.is_changed = True

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes an exported folder; weights that are there are replaced. Raises ValueError where a file is."""
        folder = Path(folder).expanduser()
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: is a file; name the folder to write")
        folder.mkdir(parents=True, exist_ok=True)
        state = self.weights()
        content = self.content(state)
        save_file(state, folder / f"{WEIGHTS}.partial")
        os.replace(folder / f"{WEIGHTS}.partial", folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        (folder / CARD).write_text(model_card(self, content, CONFIG))
        shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors lets nobody else read

    def weights(self) -> dict[str, Tensor]:
        """What using it takes, without a discriminator, on the CPU; no two share a storage."""
        return {
            name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.state_dict().items()
            if not name.startswith(DISCRIMINATOR)
        }

    def content(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """What `config.json` holds: what it is, how good, and the hash of the weights `state`."""
        config: Any = self.config
        made: dict[str, Any] = {
            "format": CHECKPOINT_FORMAT,
            "experiment": {"model": asdict(config), "data": {"image_size": self.image_size}},
        }
        self.on_save_checkpoint(made)
        if self.source and not self.is_changed:
            made |= record_of(self.source, made | dict(self.origin))
        kept = {key: value for key, value in (made | dict(self.origin)).items() if key in KEPT}
        return kept | {"weights": weights_hash(state)}


def load(cls: type[Any], path: str | Path, for_use: bool) -> Any:
    """The module of a checkpoint, which must be a `cls`. Draws no random numbers that anyone else would miss."""
    from lightning_modules.base import Setting
    from lightning_modules.models import MODULES, config_of

    checkpoint = load_checkpoint(path)
    experiment = checkpoint["experiment"]
    with readable(path, problem="not restorable"):
        config = config_of(experiment["model"], experiment.get("plugins", ""))
        kind = MODULES[config.name][0]
        sizes = {"image_size": experiment["data"]["image_size"]} | sizes_of(checkpoint)
    if not (issubclass(kind, cls) and kind.is_restorable):
        raise ValueError(f"{path}: holds a '{config.name}', which is not a {cls.__name__} that can be used alone")
    with torch.random.fork_rng(devices=[]):
        module = kind.build(config, Setting(**sizes, for_use=for_use))
    fill(module, checkpoint, path)
    return module


def fill(module: Any, checkpoint: dict[str, Any], path: str | Path) -> None:
    """Loads weights and what is known of them. A discriminator that the file lacks keeps its own.

    Raises ValueError that names `path` when the weights do not fit.
    """
    state = checkpoint["state_dict"]
    own = {name: value for name, value in module.state_dict().items() if name.startswith(DISCRIMINATOR)}
    if not own or not any(name.startswith(DISCRIMINATOR) for name in state):
        state = own | {name: value for name, value in state.items() if not name.startswith(DISCRIMINATOR)}
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        problem = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path}: the weights do not fit model '{module.config.name}': {problem}") from None
    module.on_restore(checkpoint, str(path))
    module.source = find(path)
    module.origin = {key: checkpoint[key] for key in KEPT if key in checkpoint}


def sizes_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The numbers that `Setting` takes; JSON has made lists of its pairs."""
    sizes = checkpoint.get("sizes", {})
    return {key: tuple(value) if isinstance(value, list) else value for key, value in sizes.items()}


# ---- files


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """The plain content of a run's checkpoint, or of an exported folder; `find` says what `path` may be.

    Raises ValueError that names the file for anything but one of ours.
    """
    found = find(path)
    checkpoint = read_folder(found) if found.is_dir() else read_file(found)
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key), dict) for key in PARTS):
        advice = "a public one is first turned into one by `python -m experiments.import_checkpoint`"
        raise ValueError(f"{found}: not a checkpoint of this suite; {advice}")
    if (version := checkpoint.get("format", 1)) != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{found}: checkpoint format {version}, this version reads {CHECKPOINT_FORMAT}: use the version of the "
            "suite that wrote it, or train again"
        )
    return checkpoint


def find(path: str | Path) -> Path:
    """The checkpoint file or exported folder that `path` means: itself, a run's last one, or what the hub has.

    Raises ValueError when there is none.
    """
    here = Path(os.path.expanduser(path))
    if here.is_file() or (here / CONFIG).is_file():
        return here
    if here.is_dir():
        for name in ("final.ckpt", "last.ckpt"):
            if (file := here / "checkpoints" / name).is_file():
                return file
        raise ValueError(f"{path}: neither a run's folder with a checkpoint nor an exported model ({CONFIG})")
    if re.fullmatch(HUB_ID, str(path)) and here.suffix not in (".ckpt", ".pt"):
        return fetch(str(path))
    raise ValueError(f"{path}: no such checkpoint; a run keeps its own in RUN_DIR/checkpoints/")


def fetch(hub_id: str) -> Path:
    """The folder of a model of the Hugging Face hub, downloaded if need be. Raises ValueError."""
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(hub_id))
    except ImportError:
        raise ValueError(
            f"{hub_id}: no such checkpoint here; a model of the hub takes `pip install huggingface_hub`"
        ) from None
    except Exception as error:  # of the network and of the hub, many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f"{hub_id}: no such checkpoint here, and none to be had from the hub ({reason})") from None
    if not (folder / CONFIG).is_file():
        raise ValueError(f"{hub_id}: a model of the hub, but none that `save_pretrained` wrote (no {CONFIG})")
    return folder


def read_file(path: Path) -> Any:
    with readable(path, problem="not readable as a checkpoint"):
        if not zipfile.is_zipfile(path):
            raise ValueError("cut off, or no checkpoint: a run keeps its own in RUN_DIR/checkpoints/")
        check_sums(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint


def read_folder(folder: Path) -> dict[str, Any]:
    with readable(folder / CONFIG):
        content = dict(json.loads((folder / CONFIG).read_text()))
    with readable(folder / WEIGHTS):
        state: dict[str, Tensor] = load_file(folder / WEIGHTS)
    if content.pop("weights", None) != weights_hash(state):
        raise ValueError(f"{folder / WEIGHTS}: not the weights of {CONFIG} beside it, or damaged: export them again")
    return content | {"state_dict": state}
