"""Where the queue of a sweep is kept: a journal file, or a database for workers on many machines.

A database may go away for a while, and its password is never printed.
"""

import importlib.util
import random
import re
import time
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 300  # without a heartbeat, then the worker counts as dead
RETRY_SECONDS = 5.0  # between tries to reach a database
PATIENCE_SECONDS = 3600.0  # then the command gives up; what is finished is in the records
INSTALL = {"psycopg": "pip install 'vq-image-modeling[postgresql]' (or 'psycopg[binary]')"}
# A machine that vanishes without a word is noticed within a minute or so.
CONNECTION = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
CONNECTION |= {"tcp_user_timeout": 60_000}  # milliseconds

Answer = TypeVar("Answer")


class DatabaseAway(OSError):
    """The database was away for longer than PATIENCE_SECONDS."""


def without_password(storage: str) -> str:
    """The URL as it may be printed."""
    text = re.sub(":(?!//).*@", ":***@", storage)  # also of what is not quite a URL, which SQLAlchemy cannot render
    return re.sub(r"(password=)[^&\s]*", r"\1***", text)


def database_url(storage: str) -> URL:
    """The URL with its driver. Raises ValueError: it is none, or the driver is not installed."""
    shown = f"STORAGE={without_password(storage)}"
    try:
        url = make_url(re.sub("^postgres:", "postgresql:", storage))
    except (ArgumentError, ValueError):
        raise ValueError(
            f"{shown}: expected 'journal' or a URL such as postgresql://user@host/name or sqlite:///sweep.db"
        ) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    _, _, module = url.drivername.partition("+")
    if module and importlib.util.find_spec(module) is None:
        raise ValueError(f"{shown}: the driver '{module}' is not installed: {INSTALL.get(module, f'install {module}')}")
    return url


def open_storage(storage: str, journal: Path, retry: Callable[..., None]) -> BaseStorage:
    """Opens the storage. Raises ValueError for what is none; errors of a database are passed on unchanged."""
    if storage == "journal":
        return JournalStorage(JournalFileBackend(str(journal)))
    url = database_url(storage)
    engine: dict[str, Any] = {"pool_pre_ping": True}  # a connection that was lost is made anew
    if url.drivername in ("postgresql+psycopg", "postgresql+psycopg2"):
        engine["connect_args"] = CONNECTION
    address = url.render_as_string(hide_password=False)
    beats: dict[str, Any] = {"heartbeat_interval": HEARTBEAT_SECONDS, "grace_period": GRACE_SECONDS}
    beats["heartbeat_stale_trial_callback"] = retry
    return create_tables(partial(RDBStorage, address, engine_kwargs=engine, **beats))


def create_tables(connect: Callable[[], RDBStorage], tries: int = 8) -> RDBStorage:
    """Opens the database; of workers that open an empty one together, one makes the tables and the others try again."""
    for _ in range(tries - 1):
        try:
            return connect()
        except (IntegrityError, ProgrammingError, StorageInternalError):
            time.sleep(random.uniform(0.1, 1.0))
    return connect()


def reason(error: BaseException, length: int = 200) -> str:
    """What the database's driver says, without SQLAlchemy's decoration."""
    text = str(getattr(error, "orig", None) or error)
    return " ".join(text.split())[:length]


def patient(method: Callable[..., Answer]) -> Callable[..., Answer]:
    """A method that runs by its owner's `patiently`."""

    @wraps(method)
    def waiting(self: Any, *args: Any) -> Answer:
        patiently: Patience = self.patiently
        return patiently(partial(method, self, *args))

    return waiting


class Patience:
    """Runs actions on a database; while it is away, says so and tries again. `last_outage`: when it was away last."""

    def __init__(self, storage: str) -> None:
        self.name = without_password(storage)
        self.last_outage = -float("inf")  # time.monotonic()

    def __call__(self, action: Callable[[], Answer]) -> Answer:
        """The action may be run more than once. Raises DatabaseAway when the database stays so."""
        start: float | None = None
        while True:
            try:
                answer = action()
            except (StorageInternalError, OperationalError, InterfaceError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                if not isinstance(cause, (OperationalError, InterfaceError)):
                    raise
                why = reason(cause)
                self.last_outage = now = time.monotonic()
                if start is None:
                    start = now
                    print(f"the database {self.name} cannot be reached ({why}): waiting for it", flush=True)
                if now - start > PATIENCE_SECONDS:
                    raise DatabaseAway(
                        f"the database {self.name} has been away for {PATIENCE_SECONDS / 60:.0f} minutes ({why}); "
                        "nothing finished is lost: run the same command again when it is back"
                    ) from None
                time.sleep(RETRY_SECONDS)
            else:
                if start is not None:
                    print(f"the database {self.name} is back after {time.monotonic() - start:.0f} s", flush=True)
                return answer
