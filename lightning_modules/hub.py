"""Files of pretrained weights in torch.hub's cache."""

import re
from pathlib import Path

import torch


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
