"""The queue of a sweep: an Optuna study whose trials are the cells still to be trained.

Any number of workers, on one machine or many, open the same storage and claim trials from it. A trial whose worker
died is put in again. On the dead worker's own machine a lock that the kernel freed tells so at once; elsewhere, with a
database, a heartbeat that stopped does, minutes later.
"""

import copy
import fcntl
import math
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from experiments.runtime.records import Record
from sweeps import storage as storages
from sweeps.storage import Patience, open_storage, reason, without_password

POLL_SECONDS = 5.0  # between looks at what others run
MAX_RETRIES = 3  # of a cell whose workers die
OPEN = (TrialState.WAITING, TrialState.RUNNING)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Queue:
    """The study `name` in `storage`: "journal" (a file in `output_dir`) or a database URL. `options` are the study's.

    Raises ValueError when the storage cannot be opened, or holds the study with another direction.
    """

    def __init__(self, name: str, storage: str, output_dir: Path, **options: Any) -> None:
        self.name = name
        self.locks = output_dir / "sweeps" / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        self.is_journal = storage == "journal"
        self.place = place_of(self.locks)
        self.patiently = Patience(storage)
        journal = output_dir / "sweeps" / f"{name}.journal"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.storage = open_storage(storage, journal, put_again)
            own: dict[str, Any] = {"direction": "minimize", "sampler": optuna.samplers.RandomSampler(), **options}
            self.study = optuna.create_study(study_name=name, storage=self.storage, load_if_exists=True, **own)
        except Exception as error:  # one kind for each database driver
            why = reason(error.__cause__ or error, 300)
            if isinstance(error, ValueError) and why.startswith("STORAGE="):
                raise
            hint = f"; if {journal} is damaged, delete it: results are kept in the records" if self.is_journal else ""
            raise ValueError(f"STORAGE={without_password(storage)}: cannot be opened: {why}{hint}") from None
        if (begun := self.study.direction.name.lower()) != own["direction"]:
            raise ValueError(
                f"STORAGE={without_password(storage)}: study {name} was begun with {begun}, not {own['direction']}: "
                "its trials are of another search; give this one's file another name"
            )

    @property
    def worst(self) -> float:
        return -math.inf if self.study.direction == optuna.study.StudyDirection.MAXIMIZE else math.inf

    def fill(self, jobs: Mapping[str, dict[str, Any]], params: Callable[[str], dict[str, Any]]) -> None:
        """Puts in each job (digest: user attributes) that is neither waiting nor being trained; a failed one once more.

        `params` gives the parameters to fix of the job of a digest.
        """

        def put() -> None:
            self.retry_abandoned()
            with self.alone():
                is_open = {digest_of(trial) for trial in self.trials(OPEN)}
                for digest, attributes in jobs.items():
                    if digest not in is_open:
                        self.study.enqueue_trial(params(digest), user_attrs={"digest": digest} | attributes)

        self.patiently(put)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of commands that start together on many machines, one at a time fills the queue."""
        if isinstance(self.storage, RDBStorage) and self.storage.engine.dialect.name == "postgresql":
            with self.storage.engine.connect() as connection:  # its end frees the lock
                key = zlib.crc32(self.name.encode())
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield
            return
        with open(self.locks / f"{self.name}.fill", "w") as file:
            with suppress(OSError):  # a disk without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def retry_abandoned(self) -> None:
        """Marks the trials of dead workers as failed and puts them in again, at most `MAX_RETRIES` times."""
        since_outage = time.monotonic() - self.patiently.last_outage
        if since_outage > 2 * storages.HEARTBEAT_SECONDS:  # else nobody has had the time for a heartbeat
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                fail_stale_trials(self.study)
        for trial in self.trials((TrialState.RUNNING,)):
            if not self.is_journal and not (self.place and trial.user_attrs.get("place") == self.place):
                continue  # a lock says nothing about a worker on another machine
            with self.lock(digest_of(trial)) as is_ours:
                if is_ours and self.storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
                    with suppress(UpdateFinishedTrialError, ValueError):  # another was quicker
                        self.study.tell(trial.number, state=TrialState.FAIL)
                        put_again(self.study, trial)

    @contextmanager
    def claim(self, digests: set[str]) -> Iterator[tuple[Trial | None, bool]]:
        """One waiting trial among `digests`, ours until the block ends.

        Gives (trial, True); (None, True) while others train what is left; (None, False) when nothing is.
        """

        def waiting() -> list[FrozenTrial]:
            self.retry_abandoned()
            return [trial for trial in self.trials(OPEN) if digest_of(trial) in digests]

        trials = self.patiently(waiting)
        for frozen in trials:
            if frozen.state == TrialState.WAITING:
                with self.lock(digest_of(frozen)) as is_ours:
                    if is_ours and (trial := self.patiently(partial(self.start, frozen))) is not None:
                        with self.heartbeat(trial):
                            yield trial, True
                        return
        yield None, bool(trials)

    def work(self, digests: set[str], run: Callable[[Trial], None], say: Callable[[Trial, str], None]) -> None:
        """Runs waiting trials one after the other; a failure does not stop the next.

        Then waits for those that others run, to take them over should their workers die.
        """
        is_any_left = True
        while is_any_left:
            with self.claim(digests) as (trial, is_any_left):
                if trial is not None:
                    try:
                        run(trial)
                    except storages.DatabaseAway:
                        raise
                    except Exception as error:
                        self.fail(trial, one_line(error))
                        say(trial, f"FAILED: {one_line(error)}")
                    except BaseException:  # stopped by a person, a batch system or Lightning
                        self.give_back(trial)
                        raise
                elif is_any_left:
                    time.sleep(POLL_SECONDS)

    def start(self, frozen: FrozenTrial) -> Trial | None:
        """Moves a trial from WAITING to RUNNING; None if another worker was quicker."""
        if isinstance(self.storage, RDBStorage):  # first of all: without one beat a death would never be noticed
            self.storage.record_heartbeat(frozen._trial_id)
        try:
            if not self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                return None
        except UpdateFinishedTrialError:
            return None
        trial = Trial(self.study, frozen._trial_id)
        trial.set_user_attr("place", self.place)
        return trial

    def finish(self, trial: Trial, value: float, attributes: Mapping[str, Any], params: Mapping[str, int]) -> None:
        """Stores a finished run's numbers with its trial, for optuna-dashboard and for machines that lack its record.

        A value that is not a number counts as the worst. A trial that was taken for dead meanwhile stays so: who takes
        it over finds the record.
        """

        def tell() -> None:
            with suppress(UpdateFinishedTrialError):
                for name, number in params.items():
                    trial.suggest_int(name, number, number)
                for name, attribute in attributes.items():
                    trial.set_user_attr(name, attribute)
                self.study.tell(trial.number, self.worst if math.isnan(value) else value, skip_if_finished=True)

        self.patiently(tell)

    def fail(self, trial: Trial, message: str, state: TrialState = TrialState.FAIL) -> None:
        def tell() -> None:
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr("error", message)
                self.study.tell(trial.number, state=state, skip_if_finished=True)

        self.patiently(tell)

    def give_back(self, trial: Trial) -> None:
        """Puts in again what we were stopped at, for another worker or the next command. Waits for no database."""
        with suppress(StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError, ValueError):
            put_again(self.study, self.study.tell(trial.number, state=TrialState.FAIL))

    def errors(self) -> dict[str, str]:
        """Digest -> message of the runs whose newest trial failed with one."""
        last = {digest_of(trial): trial for trial in self.patiently(self.trials)}
        return {key: trial.user_attrs["error"] for key, trial in last.items() if "error" in trial.user_attrs}

    def records(self) -> list[Record]:
        """Those that a database holds, of any sweep: machines need not share a disk."""
        if self.is_journal:
            return []

        def read() -> list[Record]:
            return [
                trial.user_attrs["record"]
                for study in self.storage.get_all_studies()
                for trial in self.storage.get_all_trials(study._study_id, False, (TrialState.COMPLETE,))
                if "record" in trial.user_attrs
            ]

        return self.patiently(read)

    @contextmanager
    def lock(self, digest: str) -> Iterator[bool]:
        """Whether we hold the lock on this run; freed at the end, or by the kernel when we die."""
        file: IO[Any]
        with open(self.locks / digest, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            except OSError as error:  # a network disk without locks: the database has to do
                if self.is_journal:
                    raise OSError(
                        f"{self.locks}: this disk knows no file locks ({error}); put OUT on another one, or use "
                        "STORAGE=postgresql://..."
                    ) from None
            try:
                yield True
            finally:
                with suppress(OSError):  # closing is not enough while a forked process has the file too
                    fcntl.flock(file, fcntl.LOCK_UN)

    @contextmanager
    def heartbeat(self, trial: Trial) -> Iterator[None]:
        """Tells a database every minute that the trial's worker lives."""
        storage, stop = self.storage, threading.Event()
        if not isinstance(storage, RDBStorage):
            yield
            return

        def beat() -> None:
            while not stop.wait(storages.HEARTBEAT_SECONDS):
                try:
                    storage.record_heartbeat(trial._trial_id)
                except (StorageInternalError, SQLAlchemyError):  # away; the next beat may reach it
                    self.patiently.last_outage = time.monotonic()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def put_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """A new waiting trial in place of one whose worker died, unless there were too many."""
    trial = copy.deepcopy(trial)
    trial.user_attrs.pop("place", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        RetryHeartbeatStaleTrialCallback(MAX_RETRIES, inherit_intermediate_values=True)(study, trial)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def place_of(folder: Path) -> str:
    """Names the folder on this machine since it was started; "" where that cannot be told."""
    try:
        status = folder.stat()
        return f"{BOOT_ID.read_text().strip()}:{status.st_dev}:{status.st_ino}"
    except OSError:
        return ""


def digest_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("digest", ""))
