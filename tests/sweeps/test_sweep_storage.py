"""Database URLs: the driver is there before any work, and the password nowhere."""

import importlib.util
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from sweeps import storage as storage_module
from sweeps.run import main
from sweeps.storage import DatabaseAway, Patience, create_tables, database_url, without_password


@pytest.mark.parametrize(
    ("storage", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me:se/c:r@et@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("postgresql:/me:secret@host/db", "postgresql:***@host/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db?user=me&password=***"),
        ("sqlite:///sweep.db", "sqlite:///sweep.db"),
        ("journal", "journal"),
    ],
)
def test_no_password_is_shown(storage: str, shown: str) -> None:
    assert without_password(storage) == shown


@pytest.mark.parametrize(
    ("storage", "driver"),
    [
        ("postgresql://me@host/db", "postgresql+psycopg"),
        ("postgres://me@host/db", "postgresql+psycopg"),
        ("postgresql+psycopg://me@host/db", "postgresql+psycopg"),
        ("sqlite:///sweep.db", "sqlite"),
    ],
)
def test_a_url_has_its_driver(storage: str, driver: str) -> None:
    pytest.importorskip("psycopg")
    assert database_url(storage).drivername == driver


def test_a_missing_driver_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["none.yaml", "--output-dir", str(tmp_path), "--storage", "postgresql://me:secret@host/db"])
    error = capsys.readouterr().err
    assert "the driver 'psycopg' is not installed: pip install 'vq-image-modeling[postgresql]'" in error
    assert "secret" not in error and len(error.splitlines()) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("storage", ["postgress", "postgresql:/me:secret@host/db"])
def test_what_is_no_url_is_named(storage: str) -> None:
    with pytest.raises(ValueError, match=r"STORAGE=.*expected 'journal' or a URL") as error:
        database_url(storage)
    assert "secret" not in str(error.value)


def away() -> OperationalError:
    return OperationalError("SELECT 1", {}, Exception("connection\nrefused"))


def test_an_action_is_tried_until_the_database_is_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.0)
    tries: list[int] = []

    def action() -> str:
        tries.append(1)
        if len(tries) < 4:
            raise away()
        return "answer"

    patiently = Patience("postgresql://me:secret@host/db")
    assert patiently(action) == "answer" and len(tries) == 4 and patiently.last_outage > 0
    assert capsys.readouterr().out.splitlines() == [
        "the database postgresql://me:***@host/db cannot be reached (connection refused): waiting for it",
        "the database postgresql://me:***@host/db is back after 0 s",
    ]


def test_an_error_that_is_no_outage_is_not_waited_for() -> None:
    with pytest.raises(ProgrammingError):
        Patience("postgresql://host/db")(lambda: raise_(ProgrammingError("SELECT", {}, Exception("no such table"))))


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(storage_module, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(DatabaseAway, match=r"run the same command again when it is back"):
        Patience("postgresql://host/db")(lambda: raise_(away()))


def test_who_loses_the_race_for_the_tables_finds_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module.time, "sleep", lambda seconds: None)
    answers: list[object] = [IntegrityError("CREATE", {}, Exception("already there")), "storage"]

    def connect() -> object:
        answer = answers.pop(0)
        return raise_(answer) if isinstance(answer, Exception) else answer

    assert create_tables(connect) == "storage"  # type: ignore[arg-type,comparison-overlap]


def raise_(error: Exception) -> None:
    raise error
