"""Two commits with the same code that decides numbers are one version; the rest is told as it is."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from experiments.runtime import code_version
from experiments.runtime.code_version import ROOT, of_commit, of_files, of_record
from experiments.runtime.records import PUBLISHED

IDENTITY = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]


def commit(root: Path, path: str, text: str) -> str:
    """Writes and commits a file; the commit's name."""
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    for command in (["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)
    return code_version.git("rev-parse", "HEAD", root=root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


def test_files_and_commits_agree(root: Path) -> None:
    first = commit(root, "lightning_modules/quantizers/vq.py", "a = 1\n")
    assert len(of_files(root)) == 12 and of_commit(first, root) == of_files(root)
    for path in ("README.md", "experiments/preview.py", "experiments/importers/taming.py", "sweeps/run.py",
                 "experiments/cost.py", "lightning_modules/notes.txt", "tests/test_x.py"):  # fmt: skip
        assert of_commit(commit(root, path, "no number depends on it"), root) == of_commit(first, root), path
    for path in ("lightning_modules/quantizers/vq.py", "experiments/train.py", "datamodules/über.py"):
        before = of_files(root)
        other = commit(root, path, "a = 2\n")
        assert of_commit(other, root) == of_files(root) != before, path
    before = of_files(root)
    (root / "lightning_modules/new.py").write_text("not committed")
    assert of_files(root) != before


def test_what_cannot_be_told_is_empty(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert of_commit("0" * 40, root) == of_commit("", root) == ""
    assert of_record({}) == of_record({"environment": {"commit": "0" * 40}}) == ""
    monkeypatch.setenv("PATH", "")  # no git
    assert code_version.git("rev-parse", "HEAD") == ""


def test_a_record_with_its_code_needs_no_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_version, "of_commit", lambda commit: f"of {commit}")
    made_on: dict[str, Any] = {"commit": "abc", "dirty": False}
    assert of_record({"environment": made_on}) == "of abc"
    assert of_record({"environment": made_on | {"dirty": True}}) == ""
    assert of_record({"environment": made_on | {"dirty": True, "code": "123"}}) == "123"


def test_the_named_files_are_there() -> None:
    """A file that is renamed must be renamed there too."""
    assert all((ROOT / "experiments" / name).exists() for name in code_version.OTHERS)


def test_published_records_have_a_code() -> None:
    """They carry no more than their commit, which is in the history."""
    commits = {json.loads(path.read_text())["environment"]["commit"] for path in PUBLISHED.glob("*.json")}
    known = [name for name in commits if code_version.git("cat-file", "-t", name) == "commit"]
    if not known:
        pytest.skip("no git history here")
    assert all(len(of_commit(name)) == 12 for name in known)
