"""The queue of a sweep: an Optuna study whose trials are the cells still to be trained.

Any number of workers, on one machine or many, open the same storage and claim trials from it. A trial whose
worker died is put in again: with a journal file, a lock that the kernel frees tells who is dead; with a
database, Optuna's heartbeat does.
"""

import fcntl
import math
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
    fail_stale_trials,
)
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from experiments.config import Downstream
from experiments.records import Record
from sweeps.grid import Run

HEARTBEAT_SECONDS = 60
GRACE_SECONDS = 300  # without a heartbeat, then the worker counts as dead
MAX_RETRIES = 3  # of a cell whose workers die
OPEN = (TrialState.WAITING, TrialState.RUNNING)


class Queue:
    """The study `name` in `storage`: "journal" (a file in `output_dir`) or a database URL.

    Raises ValueError when the storage cannot be opened.
    """

    def __init__(self, name: str, storage: str, output_dir: Path) -> None:
        self.locks = output_dir / "sweeps" / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        self.is_journal = storage == "journal"
        journal = output_dir / "sweeps" / f"{name}.journal"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                self.retry = RetryHeartbeatStaleTrialCallback(MAX_RETRIES)
                self.storage = open_storage(storage, journal, self.retry)
            self.study = optuna.create_study(
                study_name=name,
                storage=self.storage,
                direction="minimize",
                sampler=optuna.samplers.RandomSampler(),
                load_if_exists=True,
            )
        except Exception as error:  # one kind for each database driver
            reason = " ".join(str(error).split())[:300]
            hint = f"; if {journal} is damaged, delete it: results are kept in the records" if self.is_journal else ""
            raise ValueError(f"STORAGE={storage}: cannot be opened: {reason}{hint}") from None

    def fill(self, runs: Sequence[Run]) -> None:
        """Puts in each run that is neither waiting nor being trained; a failed one once more."""
        self.retry_abandoned()
        trials = self.study.get_trials(deepcopy=False)
        is_open = {digest_of(trial) for trial in trials if trial.state in OPEN}
        was_seen = {digest_of(trial) for trial in trials}
        for run in runs:
            if run.digest not in is_open:
                self.study.enqueue_trial(
                    {"cell": run.digest},
                    user_attrs={"digest": run.digest, "cell": run.label, "experiment": run.name},
                    skip_if_exists=run.digest not in was_seen,
                )

    def retry_abandoned(self) -> None:
        """Marks the trials of dead workers as failed and puts them in again, at most `MAX_RETRIES` times."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            fail_stale_trials(self.study)
        if not self.is_journal:
            return  # a lock says nothing about workers on machines that do not share our disk
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            with self.lock(digest_of(trial)) as is_ours:
                if is_ours and self.storage.get_trial(trial._trial_id).state == TrialState.RUNNING:
                    self.study.tell(trial.number, state=TrialState.FAIL)
                    self.retry(self.study, trial)

    @contextmanager
    def claim(self, digests: set[str]) -> Iterator[tuple[Trial | None, bool]]:
        """One waiting trial among `digests`, ours until the block ends.

        Gives (trial, True); (None, True) while others train what is left; (None, False) when nothing is.
        """
        self.retry_abandoned()
        trials = self.study.get_trials(deepcopy=False, states=OPEN)
        trials = [trial for trial in trials if digest_of(trial) in digests]
        for frozen in trials:
            if frozen.state == TrialState.WAITING:
                with self.lock(digest_of(frozen)) as is_ours:
                    if is_ours and (trial := self.start(frozen)) is not None:
                        with self.heartbeat(trial):
                            yield trial, True
                        return
        yield None, bool(trials)

    def start(self, frozen: FrozenTrial) -> Trial | None:
        """Moves a trial from WAITING to RUNNING; None if another worker was quicker."""
        if isinstance(self.storage, RDBStorage):  # first of all: without one beat a death would never be noticed
            self.storage.record_heartbeat(frozen._trial_id)
        try:
            if not self.storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING):
                return None
        except optuna.exceptions.UpdateFinishedTrialError:
            return None
        return Trial(self.study, frozen._trial_id)

    def finish(self, trial: Trial, run: Run, record: Record, objective: str) -> None:
        """Stores the record's numbers with the trial, for optuna-dashboard."""
        experiment = run.experiment
        tokenizer = experiment
        while isinstance(tokenizer, Downstream):
            tokenizer = tokenizer.upstream
        for name, number in (("codebook_size", tokenizer.model.codebook_size), ("seed", experiment.seed)):
            trial.suggest_int(name, number, number)
        for metric, value in record["metrics"].items():
            trial.set_user_attr(metric, value)
        value = float(record["metrics"].get(objective, math.inf))
        self.study.tell(trial.number, math.inf if math.isnan(value) else value)

    def fail(self, trial: Trial, message: str) -> None:
        trial.set_user_attr("error", message)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def errors(self) -> dict[str, str]:
        """Digest -> message of the runs whose newest trial failed with one."""
        last = {digest_of(trial): trial for trial in self.study.get_trials(deepcopy=False)}
        return {key: trial.user_attrs["error"] for key, trial in last.items() if "error" in trial.user_attrs}

    @contextmanager
    def lock(self, digest: str) -> Iterator[bool]:
        """Whether we hold the lock on this run; freed at the end, or by the kernel when we die."""
        file: IO[Any]
        with open(self.locks / digest, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough while a forked process has the file too

    @contextmanager
    def heartbeat(self, trial: Trial) -> Iterator[None]:
        """Tells a database every minute that the trial's worker lives."""
        storage, stop = self.storage, threading.Event()
        if not isinstance(storage, RDBStorage):
            yield
            return

        def beat() -> None:
            while not stop.wait(HEARTBEAT_SECONDS):
                storage.record_heartbeat(trial._trial_id)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def open_storage(storage: str, journal: Path, retry: RetryHeartbeatStaleTrialCallback) -> BaseStorage:
    if storage == "journal":
        return JournalStorage(JournalFileBackend(os.fspath(journal)))
    if "://" not in storage:
        raise ValueError("expected 'journal' or a URL such as postgresql://user@host/name or sqlite:///sweep.db")
    return RDBStorage(
        storage,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=retry,
    )


def digest_of(trial: FrozenTrial) -> str:
    return str(trial.user_attrs.get("digest", ""))
