"""What a run is, as YAML: `config.yaml` in its folder, a text in TensorBoard, an entry of its checkpoints."""

import re
import shlex
import sys

from experiments.config.compose import as_yaml
from experiments.config.experiment import Experiment

CONFIG = "config.yaml"


def described(experiment: Experiment, name: str) -> str:
    """The resolved configuration below the command that trains it; `experiments.train` reads the file again.

    Passwords in URLs are left out of the command.
    """
    command = re.sub(r"(?<=://)[^/@\s]+@", "", shlex.join(sys.orig_argv))
    return f"# {' '.join(command.split())}\n{as_yaml(experiment, name)}"
