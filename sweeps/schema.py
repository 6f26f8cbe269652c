"""What a sweep, a search and a scale YAML may hold. Defaults are stated here and nowhere else."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from experiments.config.values import read_yaml
from lightning_modules.checks import hint

SWEEPS = Path(__file__).resolve().parent
PLOT_KINDS = ("rows", "history", "columns")
USAGE, CODES = "usage/", "codes/"  # percent of the codebook, and the same as a number of codes


@dataclass
class ColumnSpec:
    """One metric of a table: `scale` times the record's number, in `format`, stands under `head`."""

    metric: str = MISSING  # key in the record's metrics, for example usage/epoch; or images_per_second, parameters
    head: str = MISSING
    format: str = ".2f"
    scale: float = 1.0
    needs: str = ""  # what this suite would need to measure it; shown in the caption


@dataclass
class PlotSpec:
    """A picture of the same records. `kind`:

    - rows: `metrics` against the row value `x`, one line for each value of `line`;
    - history: all values of `metrics` in the order in which they were measured, by what `x` says, one line a row;
    - columns: `metrics` of one row side by side, one line a row.
    """

    kind: str = ""  # rows | history | columns; empty = no picture
    x: str = ""
    line: str = ""
    metrics: list[str] = field(default_factory=list)


@dataclass
class CellSpec:
    """One row. Without `experiment` it is a reference row: the paper's numbers, nothing to train."""

    row: dict[str, Any] = MISSING  # row head: value
    experiment: str = ""  # experiments/<experiment>_<suffix of the scale>.yaml
    dataset: str = ""  # suffix in place of the scale's, at scales that have the papers' data: ffhq, celebahq
    set: dict[str, Any] = field(default_factory=dict)  # dotted key: value
    small: dict[str, Any] = field(default_factory=dict)  # in place of `set` at the scales that are small
    paper: dict[str, float] = field(default_factory=dict)  # metric: value in the column's unit; see `papers`
    scales: list[str] = field(default_factory=list)  # scales that train it; empty = all
    rule: bool = False  # a horizontal rule above this row
    use: dict[str, str] = field(default_factory=dict)  # column's metric: another metric of the record, shown there

    def papers(self, metric: str) -> float | None:
        """The paper's number, in the column's unit; that of codes in use is computed from its usage."""
        if not metric.startswith(CODES):
            return self.paper.get(metric)
        usage, size = self.paper.get(USAGE + metric.removeprefix(CODES)), self.set.get("model.codebook_size")
        return None if usage is None or size is None else usage / 100 * size


@dataclass
class TableSpec:
    id: str = MISSING
    title: str = MISSING
    paper: str = MISSING  # paper, table and data set, for the caption
    columns: list[ColumnSpec] = MISSING
    row_heads: list[str] = MISSING
    cells: list[CellSpec] = MISSING
    note: str = ""
    plot: PlotSpec = field(default_factory=PlotSpec)

    def check(self) -> None:
        metrics = [column.metric for column in self.columns]
        if not metrics or not self.cells:
            raise ValueError("needs at least one column and one cell")
        for column in self.columns:
            with naming(f"column {column.metric}: format '{column.format}'"):
                format(1.0, column.format)
        for number, cell in enumerate(self.cells, 1):
            at = f"cell {number} {cell.row}"
            expect(cell.row, self.row_heads, f"{at}, row")
            expect(self.row_heads, map(str, cell.row), f"{at}, row")
            expect([*cell.paper, *cell.use], metrics, f"{at}, paper")
            expect(cell.scales, scale_names(), f"{at}, scales")
        if self.plot.kind:
            expect([self.plot.kind], PLOT_KINDS, "plot, kind")
            expect([self.plot.x, self.plot.line] if self.plot.kind == "rows" else [], self.row_heads, "plot")
            expect(self.plot.metrics, metrics, "plot")


@dataclass
class SweepSpec:
    title: str = MISSING
    tables: list[TableSpec] = MISSING
    objective: str = "rfid"  # metric given to Optuna as the trial's value
    maximize: bool = False  # more of it is better
    counted: bool = False  # on the shapes of the papers' networks, whatever the scale and data; nothing is trained

    def check(self) -> None:
        """Raises ValueError for values that the types allow but no table can be made of."""
        ids = [table.id for table in self.tables]
        if len(set(ids)) < len(ids):
            raise ValueError(f"two tables have the same id ({', '.join(ids)}): their files would collide")
        for table in self.tables:
            with naming(f"table {table.id}"):
                table.check()


@dataclass
class ScaleSpec:
    """`overrides` go to every experiment, `experiment_overrides[name]` to one; a row's `set` wins."""

    experiments: str = MISSING  # suffix of the experiment files: cifar10 or imagenet
    is_small: bool = False  # one small data set for all rows, and small models: rows take `small`
    seeds: int = 1  # runs of each cell, with seeds 0, 1, ...
    overrides: dict[str, Any] = field(default_factory=dict)
    experiment_overrides: dict[str, dict[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        if not 1 <= self.seeds <= 1000:
            raise ValueError(f"seeds={self.seeds} must be between 1 and 1000")


@dataclass
class ParameterSpec:
    """What a search may choose for one key: a number from `low` to `high`, or one of `choices`."""

    low: float | None = None
    high: float | None = None
    log: bool = False  # even in the logarithm
    integer: bool = False
    choices: list[Any] = field(default_factory=list)

    def check(self) -> None:
        low, high = self.low, self.high
        is_range = low is not None and high is not None and low < high and (low > 0 or not self.log)
        is_choice = bool(self.choices) and low is None and high is None
        if is_range == bool(self.choices) or not (is_range or is_choice):
            raise ValueError("give `choices`, or `low` below `high` (both above 0 with `log`)")


@dataclass
class SearchSpec:
    """A search over one recipe: TPE, and a median pruner that ends a trial whose validations are worse than usual."""

    title: str = MISSING
    experiment: str = MISSING  # experiments/<experiment>_<suffix of the scale>.yaml
    space: dict[str, ParameterSpec] = MISSING  # dotted key: its range
    set: dict[str, Any] = field(default_factory=dict)  # dotted key: value, the same in all trials
    metric: str = "rfid"  # of the validation images, made small
    maximize: bool = False
    trials: int = 20
    startup_trials: int = 5  # chosen at random, and the least the median is of
    validations: int = 4  # of a trial, at equal distances; the last one is at the end
    warmup_validations: int = 1  # after these a trial may be ended
    seed: int = 0  # of the sampler

    def check(self) -> None:
        for key, parameter in self.space.items():
            with naming(f"space, {key}"):
                parameter.check()
        for name in ("trials", "startup_trials", "validations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.space:
            raise ValueError("space: names no key to search")
        if both := sorted(self.space.keys() & self.set.keys()):
            raise ValueError(f"set, {both[0]}: is searched as well: leave out one of the two")


Spec = TypeVar("Spec", SweepSpec, ScaleSpec, SearchSpec)


def find_sweep(path: str | Path) -> Path:
    """The file itself or, where there is none, the sweep of this suite of that name: vit_vqgan/table6, with or without
    sweeps/ and .yaml."""
    given = Path(os.path.expanduser(path))
    inside = Path(*given.parts[1:]) if given.parts[:1] == ("sweeps",) else given
    if given.is_file() or given.is_absolute() or not inside.name:
        return given
    ours = SWEEPS / inside.with_suffix(".yaml")
    return ours if ours.is_file() else given


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """Raises ValueError that names file and key for an unknown key, a missing one or a wrong type."""
    values = read_yaml(path)
    with naming(path):
        try:
            spec = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
        except ConfigKeyError as error:
            keys = [entry.name for entry in fields(error.object_type or kind)]
            raise ValueError(f"unknown key '{error.full_key}'{nearest(str(error.key), keys)}") from None
        except OmegaConfBaseException as error:
            raise ValueError(f"{error.full_key}: {str(error).strip().splitlines()[0]}") from None
        except TypeError:
            raise ValueError("a list stands where `key: value` lines belong, or the other way round") from None
        assert isinstance(spec, kind)
        spec.check()
    return spec


@contextmanager
def naming(place: object) -> Iterator[None]:
    """A ValueError from within names the place."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def nearest(word: str, words: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or the list of all when none is near."""
    words = [str(each) for each in words]  # a list of a YAML may hold anything
    return hint(str(word), words) or f"; known: {', '.join(words)}"


def expect(given: Iterable[str], words: Iterable[str], where: str) -> None:
    """Raises ValueError for the first of `given` that is none of `words`."""
    words = list(words)
    for word in given:
        if word not in words:
            raise ValueError(f"{where}: '{word}' is unknown{nearest(word, words)}")


def scale_names() -> list[str]:
    return sorted(path.stem for path in (SWEEPS / "scales").glob("*.yaml"))
