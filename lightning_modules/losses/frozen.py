"""Pretrained networks that a model uses but does not own, and the files that hold their weights."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class FrozenModule(nn.Module):
    """Holds a network that must never be trained, switched to train mode, or saved with a checkpoint.

    It moves with `.to(...)` as any submodule does, and gradients flow through it to its input, but the module
    that holds it sees none of its parameters: nothing in `parameters()`, nothing in `state_dict()` (LPIPS
    would add 56 MB to every checkpoint), nothing for DDP to broadcast, and `.train()` does not reach it.
    """

    def __init__(self, network: nn.Module | None) -> None:
        super().__init__()
        if network is not None:
            network.eval().requires_grad_(False)
        self._hidden = (network,)  # nn.Module registers what is assigned to it, but not what lies in a tuple

    @property
    def network(self) -> Any:  # any nn.Module, with methods of its own
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenModule":
        if self.network is not None:
            self.network._apply(fn)
        return super()._apply(fn, recurse)


def hub_file(url: str) -> Path:
    """Where torch.hub keeps the file of this address: `$TORCH_HOME/hub/checkpoints/<name>`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


def fetch_hub_file(url: str, otherwise: str) -> Path:
    """The file of this address in torch.hub's cache; downloaded, and its hash checked, when it is not there.

    Raises:
        FileNotFoundError: no file and no network. The message ends with `otherwise`, what the user can do
            instead.
    """
    path = hub_file(url)
    if not path.exists():
        sha256_prefix = re.search(r"-([0-9a-f]{8,})\.", path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), sha256_prefix and sha256_prefix[1], progress=False)
        except OSError as error:  # URLError and HTTPError are
            raise FileNotFoundError(
                f"{path} is missing, and {url} cannot be had ({error}). Put that file there, or {otherwise}."
            ) from error
    return path
