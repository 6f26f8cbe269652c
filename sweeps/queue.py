"""The queue of a sweep or search: an Optuna study whose trials are the runs still to be trained.

Storage, states, retries, samplers and pruners are Optuna's. The loop over trials is written here, as `study.optimize`:

- makes a new trial when none waits, so workers that share the last cells would train cells of no sweep;
- sets a trial to RUNNING before any lock can be held: with a journal, which has no heartbeat, and on one machine, where
  a kernel that frees a lock tells of a death at once, a trial that has just begun would look like a dead worker's;
- ends with the first error of a database that is away, and its heartbeat thread is not started again;
- lets SystemExit, a batch system's SIGTERM, pass without putting the trial back;
- ends while others still train, and so takes nothing over from them.

All private names of Optuna that this suite needs are used in this file.
"""

import copy
import math
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from experiments.runtime.files import LOCK, locked
from experiments.runtime.records import Record
from sweeps import storage as storages
from sweeps.storage import Patience, open_storage, patient, reason, without_password

POLL_SECONDS = 5.0  # between looks at what others run
MAX_RETRIES = 3  # of a run whose workers die
OPEN = (TrialState.WAITING, TrialState.RUNNING)
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

warnings.filterwarnings("ignore", category=ExperimentalWarning)  # Optuna's heartbeats and constant_liar


class Queue:
    """The study `name` in `storage`: "journal" (a file in `output_dir`) or a database URL. `options` are the study's.

    A job is identified by its digest. Its `folder`, relative to `output_dir`, is locked while a worker trains it.
    Raises ValueError when the storage cannot be opened.
    """

    def __init__(self, name: str, storage: str, output_dir: Path, metric: str = "", **options: Any) -> None:
        """`metric`: the name of a trial's value."""
        self.name, self.output_dir = name, output_dir
        (output_dir / "sweeps").mkdir(parents=True, exist_ok=True)
        self.is_journal = storage == "journal"
        self.place = place_of(output_dir)
        self.patiently = Patience(storage)
        journal = output_dir / "sweeps" / f"{name}.journal"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.storage = open_storage(storage, journal, put_again)
            self.study = optuna.create_study(study_name=name, storage=self.storage, load_if_exists=True, **options)
            if metric and self.study.metric_names is None:
                self.study.set_metric_names([metric])
        except Exception as error:  # one kind for each database driver
            hint = f"; if {journal} is damaged, delete it: results are kept in the records" if self.is_journal else ""
            why = reason(error.__cause__ or error, 300)
            raise ValueError(f"STORAGE={without_password(storage)}: cannot be opened: {why}{hint}") from None

    @patient
    def fill(self, jobs: Mapping[str, dict[str, Any]]) -> None:
        """Puts in each job (digest: user attributes) that is neither waiting nor being trained; a failed one again."""
        self.retry_abandoned()
        with self.alone():
            is_open = {job_of(trial) for trial in self.trials(OPEN)}
            for digest, attributes in jobs.items():
                if digest not in is_open:
                    self.study.enqueue_trial({}, user_attrs={"digest": digest} | attributes)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Of commands that start together on many machines, one at a time fills the queue."""
        if isinstance(self.storage, RDBStorage) and self.storage.engine.dialect.name == "postgresql":
            with self.storage.engine.connect() as connection:  # its end frees the lock
                key = zlib.crc32(self.name.encode())
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield
        else:
            with FileLock(self.output_dir / "sweeps" / f"{self.name}.lock"):
                yield

    def trials(self, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)

    def retry_abandoned(self) -> None:
        """Marks the trials of dead workers as failed and puts them in again, at most `MAX_RETRIES` times."""
        since_outage = time.monotonic() - self.patiently.last_outage
        if since_outage > 2 * storages.HEARTBEAT_SECONDS:  # else no worker has had the time for a heartbeat
            fail_stale_trials(self.study)
        for trial in self.trials((TrialState.RUNNING,)):
            if not self.is_journal and not (self.place and trial.user_attrs.get("place") == self.place):
                continue  # a lock says nothing about a worker on another machine
            with self.lock(trial) as is_free:
                if is_free and self.storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
                    with suppress(UpdateFinishedTrialError, ValueError):  # another was quicker
                        self.study.tell(trial.number, state=TrialState.FAIL)
                        put_again(self.study, trial)

    @contextmanager
    def lock(self, trial: FrozenTrial) -> Iterator[bool]:
        """Whether the folder of the trial's run is locked for this process, until the context or the process ends."""
        path = self.output_dir / trial.user_attrs["folder"] / LOCK
        with ExitStack() as stack:
            is_free = True
            try:
                stack.enter_context(locked(path, "is training there", waits=False))
            except ValueError:  # another process is at work there
                is_free = False
            yield is_free

    @contextmanager
    def claim(self, digests: set[str]) -> Iterator[tuple[Trial | None, bool]]:
        """One waiting trial among `digests`, for this process until the block ends.

        Gives (trial, True); (None, True) while others train what is left; (None, False) when nothing is.
        """
        trials = self.open_trials(digests)
        for frozen in trials:
            if frozen.state == TrialState.WAITING:
                with self.lock(frozen) as is_free:
                    if is_free and (trial := self.start(frozen)) is not None:
                        with self.heartbeat(trial):
                            yield trial, True
                        return
        yield None, bool(trials)

    @patient
    def open_trials(self, digests: set[str]) -> list[FrozenTrial]:
        self.retry_abandoned()
        return [trial for trial in self.trials(OPEN) if job_of(trial) in digests]

    @patient
    def start(self, frozen: FrozenTrial) -> Trial | None:
        """Moves a trial from WAITING to RUNNING; None if another worker was quicker."""
        if isinstance(self.storage, RDBStorage):  # first of all: without one beat a death would never be noticed
            self.storage.record_heartbeat(frozen._trial_id)
        with suppress(UpdateFinishedTrialError):
            if self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                trial = Trial(self.study, frozen._trial_id)
                trial.set_user_attr("place", self.place)
                return trial
        return None

    def attempt(self, trial: Trial, run: Callable[[Trial], None], say: Callable[[Trial, str], None]) -> None:
        """Runs a trial that was claimed; a failure is said and kept with it, a stop puts it back."""
        try:
            run(trial)
        except storages.DatabaseAway:
            raise
        except Exception as error:
            message = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self.fail(trial, message)
            say(trial, f"FAILED: {message}")
        except BaseException:  # stopped by a person, a batch system or Lightning
            self.give_back(trial)
            raise

    @patient
    def finish(self, trial: Trial, value: float, attributes: Mapping[str, Any], params: Mapping[str, int]) -> None:
        """Stores a finished run's numbers with its trial, for optuna-dashboard and for machines that lack its record.

        A value that is not a number counts as the worst. A trial that was taken for dead meanwhile stays so.
        """
        worst = -math.inf if self.study.direction.name == "MAXIMIZE" else math.inf
        with suppress(UpdateFinishedTrialError):
            for name, number in params.items():
                trial.suggest_int(name, number, number)
            for name, attribute in attributes.items():
                trial.set_user_attr(name, attribute)
            self.study.tell(trial.number, worst if math.isnan(value) else value, skip_if_finished=True)

    @patient
    def fail(self, trial: Trial, message: str, state: TrialState = TrialState.FAIL) -> None:
        with suppress(UpdateFinishedTrialError):
            trial.set_user_attr("error", message)
            self.study.tell(trial.number, state=state, skip_if_finished=True)

    @patient
    def is_hopeless(self, trial: Trial, value: float, step: int) -> bool:
        """Stores the value that the trial has at `step`; whether the study's pruner would end it there."""
        with suppress(UpdateFinishedTrialError):  # taken for dead in the meantime
            trial.report(value, step)
            return trial.should_prune()
        return False

    def give_back(self, trial: Trial) -> None:
        """Puts in again what was stopped, for another worker or the next command. Waits for no database."""
        with suppress(StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError, ValueError):
            put_again(self.study, self.study.tell(trial.number, state=TrialState.FAIL))

    @patient
    def errors(self) -> dict[str, str]:
        """Digest -> message of the runs whose newest trial failed with one."""
        last = {job_of(trial): trial for trial in self.trials()}
        return {key: trial.user_attrs["error"] for key, trial in last.items() if "error" in trial.user_attrs}

    @patient
    def seconds(self, since: float) -> list[tuple[str, float]]:
        """(experiment, seconds) of each run that was begun after `since`, of `time.time()`, and is finished."""
        done = (trial for trial in self.trials((TrialState.COMPLETE,)) if "seconds" in trial.user_attrs)
        recent = (trial for trial in done if trial.datetime_start and trial.datetime_start.timestamp() >= since)
        return [(trial.user_attrs["experiment"], trial.user_attrs["seconds"]) for trial in recent]

    @patient
    def records(self) -> list[Record]:
        """Those that a database holds, of any sweep: machines need not share a disk."""
        return [
            trial.user_attrs["record"]
            for study in self.storage.get_all_studies()
            for trial in self.storage.get_all_trials(study._study_id, False, (TrialState.COMPLETE,))
            if "record" in trial.user_attrs
        ]

    @contextmanager
    def heartbeat(self, trial: Trial) -> Iterator[None]:
        """Tells a database every minute that the trial's worker lives; also after an outage, unlike Optuna's thread."""
        stop = threading.Event()

        def beat() -> None:
            while isinstance(self.storage, RDBStorage) and not stop.wait(storages.HEARTBEAT_SECONDS):
                try:
                    self.storage.record_heartbeat(trial._trial_id)
                except (StorageInternalError, SQLAlchemyError):  # away; the next beat may reach it
                    self.patiently.last_outage = time.monotonic()

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


class Lot(NamedTuple):
    """Jobs of one queue: the digests of those that may be begun now, how to run one, and how to say what came of it."""

    queue: Queue
    digests: Callable[[], set[str]]
    run: Callable[[Trial], None]
    say: Callable[[Trial, str], None]


def work(lots: Sequence[Lot]) -> None:
    """Runs waiting trials one after the other, always the first of the first lot; a failure does not stop the next.

    Then waits for those that others run, to take them over should their workers die.
    """
    is_any_left = True
    while is_any_left:
        is_any_left, is_idle = False, True
        for lot in lots:
            with lot.queue.claim(lot.digests()) as (trial, is_lot_left):
                is_any_left |= is_lot_left
                if trial is not None:
                    lot.queue.attempt(trial, lot.run, lot.say)
                    is_idle = False
                    break
        if is_any_left and is_idle:
            time.sleep(POLL_SECONDS)


def put_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """A new waiting trial in place of one whose worker died, unless there were too many."""
    trial = copy.deepcopy(trial)
    trial.user_attrs.pop("place", None)
    RetryHeartbeatStaleTrialCallback(MAX_RETRIES, inherit_intermediate_values=True)(study, trial)


def place_of(folder: Path) -> str:
    """Names the folder on this machine since it was started; "" where that cannot be told."""
    try:
        status = folder.stat()
        return f"{BOOT_ID.read_text().strip()}:{status.st_dev}:{status.st_ino}"
    except OSError:
        return ""


def job_of(trial: Trial | FrozenTrial) -> str:
    return str(trial.user_attrs.get("digest", ""))
