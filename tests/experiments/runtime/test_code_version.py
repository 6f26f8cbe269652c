"""Code that behaves the same is one version; where the version is unknown, the record says so."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from experiments.runtime import code_version
from experiments.runtime.code_version import CODE, is_changed, of_record
from experiments.runtime.records import PUBLISHED, environment, read_record

IDENTITY = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]


def test_a_record_says_which_code_made_it() -> None:
    assert environment()["code"] == CODE and len(CODE) == 12


def test_changed_files_are_seen(tmp_path: Path) -> None:
    for name in ("lightning_modules/a.py", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    for command in (["init", "-q"], ["add", "-A"], [*IDENTITY, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "README.md").write_text("2")
    assert not is_changed(tmp_path)
    (tmp_path / "lightning_modules/a.py").write_text("2")
    assert is_changed(tmp_path)


def test_what_cannot_be_told_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    made_on: dict[str, Any] = {"commit": "abc", "dirty": False, "code": "123"}
    assert of_record({"environment": made_on}) == "123"
    assert of_record({"environment": made_on | {"dirty": True}}) == ""
    assert of_record({}) == of_record({"environment": {"commit": "0" * 40}}) == ""
    monkeypatch.setenv("PATH", "")  # no git
    assert code_version.git("rev-parse", "HEAD") == "" and not is_changed()


def test_published_records_have_a_code() -> None:
    assert all(of_record(read_record(path)) for path in PUBLISHED.glob("*.json"))
