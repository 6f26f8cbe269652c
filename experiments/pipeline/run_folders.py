"""What the folders of runs and their records tell; nothing here is trained or changed."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.config.compose import CONFIG, load_experiment, parse
from experiments.config.experiment import Experiment
from experiments.config.identity import digest_of, entries
from experiments.runtime.files import LOCK, is_locked
from experiments.runtime.records import PUBLISHED, Record, find_records
from lightning_modules.checks import require
from lightning_modules.pretrained import find, load_checkpoint


class RunFolder(NamedTuple):
    folder: Path
    experiment: Experiment
    record: Record | None
    state: str  # training | finished | trained, not evaluated | failed | stopped | not begun

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def config(self) -> dict[str, Any]:
        """The flat keys that may decide a number."""
        return {key: value for key, value, _ in entries(self.experiment)}

    def metric(self, name: str) -> tuple[float, str] | None:
        """Its value and protocol id."""
        if self.record is None or name not in self.record["metrics"]:
            return None
        return self.record["metrics"][name], self.record["protocols"].get(name, "not stated")


def read_run(folder: str | Path) -> RunFolder:
    """Raises ValueError for a folder that is no run's, or of another version of the suite."""
    folder = Path(folder).expanduser()
    require(folder.is_dir(), f"{folder}: no such folder; name a run's, OUT/experiments/RUN")
    file = folder / CONFIG
    if file.is_file():
        experiment = load_experiment(file)
    else:
        experiment = parse(load_checkpoint(find(folder))["experiment"], str(folder))
    places = [folder.absolute().parent.parent, Path(experiment.runtime.output_dir)]
    found = find_records(experiment, [*(place / "records" for place in places), PUBLISHED])
    named = {digest_of([experiment.digest(), data_id]): record for data_id, record in found.items()}
    record = named.get(folder.name[-12:], None if len(found) > 1 else next(iter(found.values()), None))
    return RunFolder(folder, experiment, record, state_of(folder, record))


def state_of(folder: Path, record: Record | None) -> str:
    checkpoints = folder / "checkpoints"
    states = {
        "training": is_locked(folder / LOCK),
        "finished": record is not None,
        "failed": (folder / "error.txt").is_file(),
        "trained, not evaluated": (checkpoints / "final.ckpt").is_file(),
        "stopped": (checkpoints / "last.ckpt").is_file(),
    }
    return next((name for name, is_so in states.items() if is_so), "not begun")


def differing(runs: Sequence[RunFolder]) -> dict[str, list[Any]]:
    """The flat keys in which the runs differ, with the value of each; None where its model has no such key."""
    configs = [run.config for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def unlike_most(runs: Sequence[RunFolder]) -> list[str]:
    """For each run, "codebook_size=256 seed=1": where it is not as most of those runs are that have the key."""
    texts: list[list[str]] = [[] for _ in runs]
    for key, values in differing(runs).items():
        usual = Counter(repr(value) for value in values if value is not None).most_common(1)[0][0]
        for text, value in zip(texts, values, strict=True):
            if value is not None and repr(value) != usual:
                text.append(f"{key.removeprefix('model.')}={value}")
    return [" ".join(text) for text in texts]


def columns_of(runs: Sequence[RunFolder], metrics: Sequence[str]) -> dict[tuple[str, str], list[float | None]]:
    """(metric, protocol) -> the value of each run that was measured so."""
    columns: dict[tuple[str, str], list[float | None]] = {}
    for name in metrics:
        found = [run.metric(name) for run in runs]
        for protocol in dict.fromkeys(pair[1] for pair in found if pair):
            columns[name, protocol] = [pair[0] if pair and pair[1] == protocol else None for pair in found]
    return columns
