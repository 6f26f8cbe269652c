"""From result records to the number of a row: its mean and spread over the seeds that are alike in all else."""

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.runtime import code_version
from experiments.runtime.records import PUBLISHED, Record, find_records, images_id, read_record
from sweeps.grid import Grid, Row, Run
from sweeps.schema import CODES, USAGE, ColumnSpec

PARAMETERS = "parameters/trained-without-discriminator"
LOWER = ("rfid", "fid", "lpips", "feature_distance", "l1", "l2", "logit_laplace")  # is better
HIGHER = ("usage", "psnr", "ssim", "ris", "is", "images_per_second", "probe/accuracy", "classifier/accuracy")
ALL_REACHABLE = 99.99  # percent: ten tokens a code, drawn evenly, use 99.995 % of the codes

Finished = dict[str, Record]  # digest -> record, all of one data set


@dataclass(frozen=True)
class Measured:
    """One metric of one row, in the column's unit: a number a seed."""

    values: tuple[float, ...]
    protocols: frozenset[str] = frozenset()
    version: tuple[str, ...] = ()  # of what made the records, see `version_of`
    chosen: frozenset[str] = frozenset()  # protocols that differ on purpose, of numbers that a row's `use` names

    @property
    def all_protocols(self) -> frozenset[str]:
        return self.protocols | self.chosen

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, form: str, num_seeds: int = 0) -> str:
        """The spread has the decimals of the mean; the number of seeds stands behind where it is not `num_seeds`."""
        mean = format(self.mean, f"#{form}" if form.endswith("g") else form).rstrip(".")  # 170.0, not 170
        n = f" ({len(self.values)})" if num_seeds and len(self.values) != num_seeds else ""
        if self.std is None:
            return mean + n
        decimals = len(mean.partition(".")[2])
        return f"{mean} ± {format(self.std, form if 'e' in mean else f'.{decimals}f')}{n}"


def measure(column: ColumnSpec, row: Row, finished: Finished) -> Measured | None:
    """The column's metric, or the one that the row's `use` gives for it, of the seeds; None without a number.

    A number that `use` chooses differs from its column on purpose: its protocol is not compared.
    """
    other = row.cell.use.get(column.metric)
    records = records_of(row, finished)
    numbers = [pair for record in records if (pair := find_number(record, other or column.metric))]
    if not numbers:
        return None
    if column.metric == "images_per_second":  # of one kind of device
        (usual, _), *_ = Counter(protocol for _, protocol in numbers).most_common(1)
        numbers = [pair for pair in numbers if pair[1] == usual]
    values = tuple(number * column.scale for number, _ in numbers)
    protocols, none = frozenset(protocol for _, protocol in numbers), frozenset[str]()
    return Measured(values, none if other else protocols, version_of(records[0]), protocols if other else none)


def find_number(record: Record, metric: str) -> tuple[float, str] | None:
    """The metric and its protocol.

    Speed and size are facts of the run, not among its metrics; of runs that shared a machine there is no speed.
    codes/... is usage/... as a number of codes.
    """
    if metric.startswith(CODES):
        usage = find_number(record, USAGE + metric.removeprefix(CODES))
        return usage and (usage[0] / 100 * record["config"]["model"]["codebook_size"], usage[1])
    if metric in record["metrics"]:
        return record["metrics"][metric], record["protocols"].get(metric, "not stated")
    if metric == "images_per_second" and record.get("num_concurrent", 1) > 1:
        return None
    facts = {"images_per_second": f"training/{record.get('device')}", "parameters": PARAMETERS}
    return (record[metric], facts[metric]) if metric in facts and metric in record else None


def version_of(record: Record) -> tuple[str, ...]:
    """What besides the configuration decides numbers: the code, and the arithmetic of the device.

    bf16-mixed multiplies the same numbers everywhere, so that its seeds share a mean whatever they ran on. In the other
    precisions they do not: a GPU's 32-true is TF32 in convolutions, and float16 is not every CPU's.
    """
    precision = record.get("config", {}).get("trainer", {}).get("precision", "")
    device = str(record.get("device", "")).partition(":")[0]
    return (code_version.of_record(record) or commit_of(record), precision if precision == "bf16-mixed" else device)


def commit_of(record: Record) -> str:
    made_on = record.get("environment", {})
    return (made_on.get("commit", "")[:9] or "unknown") + ("+changes" if made_on.get("dirty") else "")


def records_of(row: Row, finished: Finished) -> list[Record]:
    """The row's records that may share a mean: of several versions, those of the one with most seeds."""
    records = [finished[run.digest] for run in row.runs if run.digest in finished]
    if not records:
        return []
    (usual, _), *_ = Counter(map(version_of, records)).most_common(1)
    return [record for record in records if version_of(record) == usual]


def all_records(*folders: Path) -> list[Record]:
    """The published records, and those in other folders."""
    return [read_record(path) for folder in (PUBLISHED, *folders) for path in sorted(folder.glob("*.json"))]


def all_seeds(output_dir: Path) -> list[int]:
    """Those of all records."""
    return sorted({int(record["config"].get("seed", 0)) for record in all_records(output_dir / "records")}) or [0]


def cost(runs: Iterable[Run], records: Iterable[Record]) -> str:
    """ ", about 3 h on a CPU": what trainings would take by the median of their recipe; "" without a record of a CPU.

    A recipe that has no record counts as the median of all. What the trainings stand on is not counted.
    """
    seconds: dict[str, list[float]] = {}
    for record in records:
        if record.get("device") == "cpu" and record.get("wall_seconds"):
            seconds.setdefault(record["name"], []).append(record["wall_seconds"])
    if not seconds:
        return ""
    every = [one for some in seconds.values() for one in some]
    hours = sum(statistics.median(seconds.get(run.name, every)) for run in runs) / 3600
    return f", about {hours:.2g} h on a CPU"


def finished_by_data(grid: Grid, output_dir: Path) -> dict[str, Finished]:
    """The finished records of the grid's runs, by the id of their images; published ones and those of `output_dir`.

    Raises ValueError for two records of one run on the same images that differ in what else it read.
    """
    by_data: dict[str, Finished] = {}
    for run in grid.runs:
        for data_id, record in find_records(run.experiment, [output_dir / "records", PUBLISHED]).items():
            before = by_data.setdefault(images_id(data_id), {}).setdefault(run.digest, record)
            if before is not record:
                raise ValueError(
                    f"{run.label}: two records, of {before['data_id']} and {data_id}: with another codebook or another "
                    f"model below; delete the one that is not to be shown ({run.digest}.*.json)"
                )
    return by_data


def is_better(metric: str) -> int:
    """1 for a metric of which more is better, -1 where less is, 0 where neither says anything.

    Bits per token say nothing: rows have different tokenizers.
    """

    def among(names: Sequence[str]) -> bool:
        return any(metric == name or metric.startswith(f"{name}/") for name in names)

    return 1 if among(HIGHER) else -1 if among(LOWER) else 0


def head_of(head: str, protocol: str) -> str:
    """The column's head; FID and IS are of Inception's features, else the judge's name stands beside FD or score."""
    judge = re.match(r"[^/]+/((?:efficientnet-lite|clip-|dinov2-|vgg16)[\w-]*)@", protocol)
    name = re.sub("([FK])ID", r"\1D", head)
    return f"{name} ({judge[1].replace('efficientnet-lite', 'Lite')})" if judge else head


def reachable(metric: str, row: Row, finished: Finished) -> float | None:
    """Percent of the codes that as many tokens as a usage counts would use if drawn evenly; None where not recorded."""
    name = re.sub("^usage/", "reachable/", row.cell.use.get(metric, metric))
    numbers = [pair[0] for record in records_of(row, finished) if (pair := find_number(record, name))]
    return statistics.fmean(numbers) if numbers and metric.startswith("usage/") else None
