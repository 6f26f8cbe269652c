"""The version of the code that made a record: its behaviour, not its files.

`CODE` is the digest of the golden numbers (tests/golden/*.json), kept here because a wheel has no tests. Code that
reproduces them is the same version, whatever has moved; `GOLDEN=write python -m pytest tests/golden` writes it anew.
"""

import subprocess
from pathlib import Path
from typing import Any

CODE = "1b88f6bd46e0"

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lightning_modules", "datamodules", "experiments")  # where a change that is not committed may change numbers


def is_changed(root: Path = ROOT) -> bool:
    """Whether files differ from the commit, so that the running code may have other golden numbers."""
    return bool(git("status", "--porcelain", "--untracked-files=no", "--", *FOLDERS, root=root))


def of_record(record: dict[str, Any]) -> str:
    """The version of the code that made the record; "" where changes were not committed, so that it is unknown."""
    environment = record.get("environment", {})
    return "" if environment.get("dirty") else str(environment.get("code", ""))


def git(*arguments: str, root: Path = ROOT) -> str:
    """What the command prints; "" where it fails or there is no git."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
