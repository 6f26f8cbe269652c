"""Which version of the code that decides numbers made a record: two commits may have the same.

Named by the git blobs of the files, so that it can be had of a commit as well as of files without any git.
"""

import functools
import hashlib
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lightning_modules", "datamodules", "experiments")
# Of experiments/: what shows, checks, estimates or imports, and decides no number of a record.
OTHERS = (
    *("checks.py", "code_version.py", "errors.py", "evaluate.py", "import_checkpoint.py", "preview.py", "records.py"),
    *("sample.py", "summary.py", "codebooks/estimate.py", "runtime/health.py", "stage2/sample_files.py"),
    *("costs/", "importers/"),
)
FORMERLY = ("codebook_estimate.py", "cost.py", "health.py", "paper_counts.py", "sample_files.py")  # in older commits


def decides_numbers(path: str) -> bool:
    """`path` from the repository's root, with forward slashes."""
    others = tuple(f"experiments/{name}" for name in (*OTHERS, *FORMERLY))
    return (
        path.endswith(".py") and path.startswith(tuple(f"{name}/" for name in FOLDERS)) and not path.startswith(others)
    )


def digest(blobs: Iterable[tuple[str, str]]) -> str:
    """12 hex digits of (path, blob) pairs."""
    lines = sorted(f"{path} {blob}\n" for path, blob in blobs if decides_numbers(path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def of_files(root: Path = ROOT) -> str:
    """Of the files as they are now."""

    def blob(content: bytes) -> str:
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    paths = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    return digest((path.relative_to(root).as_posix(), blob(path.read_bytes())) for path in paths)


@functools.cache
def of_commit(commit: str, root: Path = ROOT) -> str:
    """Of the files of a commit; "" where git or the commit is not at hand."""
    listing = git("ls-tree", "-r", "-z", commit, "--", *FOLDERS, root=root) if commit else ""
    if not listing:
        return ""
    rows = (line.split("\t") for line in listing.split("\0") if line)  # mode type blob, path
    return digest((path, head.split()[2]) for head, path in rows)


def of_record(record: dict[str, Any]) -> str:
    """Of the code that made the record; "" where that cannot be told: changes that were not committed, no history."""
    environment = record.get("environment", {})
    if environment.get("code"):
        return str(environment["code"])
    return "" if environment.get("dirty") else of_commit(str(environment.get("commit", "")))


def git(*arguments: str, root: Path = ROOT) -> str:
    """What the command prints; "" where it fails or there is no git."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
