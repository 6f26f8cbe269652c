"""From a sweep YAML and a scale to checked experiments, row by row.

A run = experiment YAML + scale overlay + the row's `set` + command-line overrides + seed; later layers win.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.compose import compose, parse, read_recipe
from experiments.config.experiment import MODULES, Experiment, schema
from experiments.config.values import flatten, from_dotlist, merge
from lightning_modules.base import ModuleConfig
from sweeps.schema import (
    SWEEPS,
    CellSpec,
    ScaleSpec,
    SweepSpec,
    TableSpec,
    find_sweep,
    naming,
    nearest,
    read_spec,
    scale_names,
)

EXPERIMENTS = SWEEPS.parent / "experiments"


@dataclass(frozen=True)
class Run:
    """One training: a cell and a seed."""

    name: str  # of the experiment file
    label: str  # of the row, for people
    experiment: Experiment

    @cached_property
    def digest(self) -> str:
        return self.experiment.digest()


@dataclass(frozen=True)
class Row:
    cell: CellSpec
    runs: tuple[Run, ...]  # one a seed; none for a reference row

    @property
    def heads(self) -> dict[str, Any]:
        return self.cell.row


@dataclass(frozen=True)
class Table:
    spec: TableSpec
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Grid:
    name: str  # ablation_codebook, vqgan_lc_table2
    spec: SweepSpec
    scale: str
    seeds: tuple[int, ...]
    tables: tuple[Table, ...]
    are_seeds_open: bool = False  # whether other seeds that are finished count, too

    @property
    def runs(self) -> list[Run]:
        """Every training once, in the file's order and under its first row's name, however many rows ask for it."""
        runs: dict[str, Run] = {}
        for run in (run for table in self.tables for row in table.rows for run in row.runs):
            runs.setdefault(run.digest, run)
        return list(runs.values())

    def name_of(self, table: Table) -> str:
        """What the names of a table's files begin with."""
        return self.name if len(self.tables) == 1 else f"{self.name}_{table.spec.id}"

    def chosen(self, patterns: Sequence[str]) -> list[Run]:
        """Of `runs` those of rows that a pattern means; seeds do not count.

        A pattern names some of the heads, as in "K=1* quantizer=LC", or is a shell pattern of a label or TABLE/label.
        """

        def matches(table: Table, row: Row) -> bool:
            label = label_of(row.heads)
            names = (label, f"{table.spec.id}/{label}")
            return any(
                is_named(row.heads, pattern) or any(fnmatchcase(name, pattern) for name in names)
                for pattern in patterns
            )

        rows = (row for table in self.tables for row in table.rows if matches(table, row))
        digests = {run.digest for row in rows for run in row.runs}
        return [run for run in self.runs if run.digest in digests]

    def prepared(self, prepare: Callable[[Experiment], Experiment]) -> "Grid":
        """The same grid of other experiments, for example on another data set."""

        return self.changed(lambda run: replace(run, experiment=prepare(run.experiment)))

    def changed(self, change: Callable[[Run], Run | None]) -> "Grid":
        """The same grid of other runs, without those that become None."""

        def of(row: Row) -> Row:
            return replace(row, runs=tuple(run for run in map(change, row.runs) if run is not None))

        tables = (replace(table, rows=tuple(map(of, table.rows))) for table in self.tables)
        return replace(self, tables=tuple(tables))

    def with_seeds(self, seeds: Iterable[int]) -> "Grid":
        """Every row with these seeds as well, after its own."""
        more = [seed for seed in seeds if seed not in self.seeds]

        def of(row: Row) -> Row:
            others = (
                Run(run.name, f"{label_of(row.heads)} seed {seed}", replace(run.experiment, seed=seed))
                for run in row.runs[:1]
                for seed in more
            )
            return replace(row, runs=(*row.runs, *others))

        tables = (replace(table, rows=tuple(map(of, table.rows))) for table in self.tables)
        return replace(self, tables=tuple(tables))


def load_grid(path: str | Path, scale: str, seeds: str = "", overrides: Sequence[str] = ()) -> Grid:
    """Reads and checks everything before anything is trained.

    `seeds`: "0,1,2", a count, or "" for the scale's own count. `overrides`: key=value for every experiment.

    Raises ValueError that names the file, the row and the key at fault.
    """
    path = find_sweep(path)
    sweep = read_spec(path, SweepSpec)
    scale = "paper" if sweep.counted else scale
    overlay = load_scale(scale)
    numbers = parse_seeds(seeds) if seeds else tuple(range(overlay.seeds))
    heads = {head for table in sweep.tables for head in table.row_heads}
    for item in overrides:
        if item.partition("=")[0] in heads:
            raise ValueError(
                f"'{item}': a head of rows, no key of experiments; rows by several heads: --only 'A=1 B=2'"
            )
    last = from_dotlist(overrides)

    def expand(table: TableSpec, cell: CellSpec) -> Row:
        if not cell.experiment:
            return Row(cell, ())
        label = label_of(cell.row)
        dataset = "" if overlay.is_small else cell.dataset
        name = f"{cell.experiment}_{dataset or overlay.experiments}"
        own_set = cell.small if overlay.is_small and cell.small else cell.set
        origin = f"{path}: table {table.id}, row '{label}'"
        with naming(origin):
            values = compose(recipe_values(name, nest(own_set), overlay), last)
        checked = parse(values, f"{origin} ({name}.yaml)")
        labels = [f"{label} seed {seed}" if len(numbers) > 1 else label for seed in numbers]
        runs = (Run(name, own, replace(checked, seed=seed)) for own, seed in zip(labels, numbers, strict=True))
        return Row(cell, tuple(runs))

    tables = tuple(
        Table(spec, tuple(expand(spec, cell) for cell in spec.cells if not cell.scales or scale in cell.scales))
        for spec in sweep.tables
    )
    return Grid(sweep_name(path), sweep, scale, numbers, tables, are_seeds_open=not seeds)


def recipe_values(name: str, changes: dict[str, Any], overlay: ScaleSpec) -> dict[str, Any]:
    """A recipe with the scale's overlay and `changes`; what it stands on likewise.

    The overlay is of models that stand on no other; of its keys of models, one takes those that it has.
    """
    file = read_recipe(EXPERIMENTS / f"{name}.yaml")
    own = overlay.experiment_overrides.get(name.rsplit("_", 1)[0], {})
    keys = keys_of(schema(file, f"{name}.yaml").model)
    common = {} if "upstream" in file else overlay.overrides
    common = {key: value for key, value in common.items() if key in keys or not key.startswith("model.")}
    values = compose(file, nest(common), nest(own), changes)
    upstream = values.get("upstream")
    if isinstance(upstream, dict) and (recipe := upstream.get("recipe")) and isinstance(recipe, str):
        theirs = {key: value for key, value in upstream.items() if key != "recipe"}
        values["upstream"] = {"recipe": recipe} | recipe_values(Path(recipe).stem, theirs, overlay)
    return values


def load_scale(scale: str) -> ScaleSpec:
    if scale not in scale_names():
        raise ValueError(f"SCALE={scale} is none of {', '.join(scale_names())}{nearest(scale, scale_names())}")
    overlay = read_spec(path := SWEEPS / "scales" / f"{scale}.yaml", ScaleSpec)
    keys = set().union(*(keys_of(config()) for _, config in MODULES.values()))
    for key in overlay.overrides:
        if key.startswith("model.") and key not in keys:
            raise ValueError(f"{path}: overrides: no model has the key '{key}'{nearest(key, keys)}")
    return overlay


def keys_of(model: ModuleConfig) -> set[str]:
    return set(flatten(asdict(model), "model"))


def sweep_name(path: Path) -> str:
    """sweeps/vqgan_lc/table2.yaml -> vqgan_lc_table2; the file's own name outside of `sweeps/`."""
    whole = path.resolve()
    inside = whole.relative_to(SWEEPS) if whole.is_relative_to(SWEEPS) else Path(whole.name)
    return "_".join(inside.with_suffix("").parts)


def parse_seeds(text: str) -> tuple[int, ...]:
    """ "0,1,5" -> those seeds; "3" -> 0, 1, 2 (a count); "5," -> only seed 5; "0" -> seed 0."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 0 or len(set(numbers)) < len(numbers):
        raise ValueError(f"SEEDS={text}: give a count (3) or different numbers separated by commas (0,1,2)")
    return tuple(range(numbers[0])) if "," not in text and numbers[0] > 0 else numbers


def nest(dotted: dict[str, Any]) -> dict[str, Any]:
    """{"a.b": 1, "a.c": 2} -> {"a": {"b": 1, "c": 2}}."""
    layers = []
    for key, value in dotted.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        layers.append(value)
    return merge(*layers)


def label_of(row: dict[str, Any]) -> str:
    """{"quantizer": "LC", "K": 100000} -> "LC K=100,000": for people."""
    first, *rest = row.items()
    return " ".join([show(first[1]), *(f"{head}={show(value)}" for head, value in rest)])


def is_named(heads: dict[str, Any], pattern: str) -> bool:
    """Whether "HEAD=VALUE HEAD=VALUE ..." holds of these heads; a VALUE is a shell pattern, of 100000 or of 100,000."""
    begin, *named = re.split(rf"(?:^|\s+)({'|'.join(map(re.escape, heads))})=", pattern)
    return (
        bool(named)
        and not begin
        and all(
            fnmatchcase(str(heads[head]), value) or fnmatchcase(show(heads[head]), value)
            for head, value in zip(named[::2], named[1::2], strict=True)
        )
    )


def show(value: Any) -> str:
    """A row head's value as tables print it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
