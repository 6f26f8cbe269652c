"""The language of sweeps/claims.yaml: what a claim says of a table's cells, and whether the cells' numbers bear it out.

A node of a claim's `test` holds one kind and the keys that go with it; `table`, `metric`, `each` and `by` are handed
down from the claim and from nodes above. A row is picked by its heads, {quantizer: LC, K: 16384}; a list in it picks
several rows: {quantizer: LC, K: [1024, 16384]}.

- all | any: a list of nodes;
- above | below: a list of rows or lists of rows, each above (below) the next, by more than the share `by` of the next;
- rises | falls: rows along the row head `along`: the last lies above (below) the first, and no step goes the other way;
- similar: rows that differ by less than the share `within`;
- at_least | at_most: rows whose number is at least (at most) `value`, for usage of what can be reached: `of_reachable`;
- peaks: a row whose history of at least `points` numbers is highest in its middle half;
- needs: what would have to be run before anything can be said.

What "above" means of two numbers, sweeps/differences.py says.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any

from sweeps.differences import (
    HOLDS,
    NOT_RUN,
    REFUTED,
    UNDECIDED,
    Finding,
    Rules,
    Side,
    compare,
    fewest_seeds,
    why_not_comparable,
)
from sweeps.grid import label_of
from sweeps.measure import Measured
from sweeps.schema import expect

KEYS = {
    "all": (), "any": (), "above": (), "below": (), "rises": ("along",), "falls": ("along",),
    "similar": ("within",), "at_least": ("value", "of_reachable"), "at_most": ("value", "of_reachable"),
    "peaks": ("points",), "needs": (),
}  # fmt: skip
SHARED = ("table", "metric", "each", "by")

Row = dict[str, Any]
Node = dict[str, Any]


@dataclass(frozen=True)
class Cells:
    """Where a test finds numbers: a row's value, and a row's history as one number a point."""

    side: Callable[[str, Row, str], Side]
    history: Callable[[str, Row, str], list[Side]]

    def first(self, seeds: int) -> "Cells":
        """The same of the first seeds alone."""
        return Cells(
            lambda *cell: self.side(*cell).first(seeds), lambda *cell: [one.first(seeds) for one in self.history(*cell)]
        )


def evaluate(node: Node, cells: Cells, rules: Rules, given: Node | None = None) -> tuple[str, list[Finding]]:
    """The verdict of a checked node, and every comparison behind it. `given`: what is handed down to it."""
    kind = kind_of(node)
    node = {key: value for key, value in (given or {}).items() if key in SHARED} | node
    if kind in ("all", "any"):
        parts = [evaluate(child, cells, rules, node) for child in node[kind]]
        return combine([verdict for verdict, _ in parts], kind), [each for _, part in parts for each in part]
    if kind == "needs":
        return NOT_RUN, [Finding(NOT_RUN, "", Side(node[kind], None), reason="no sweep has it")]
    findings = [
        finding for metric in listed(node["metric"]) for fixed in each_of(node)
        for finding in FINDINGS[kind](node, metric, fixed, cells, rules)
    ]  # fmt: skip
    return combine([finding.verdict for finding in findings]), findings


def combine(verdicts: Sequence[str], kind: str = "all") -> str:
    """`all`: one part refuted refutes, all have to hold. `any`: the other way round."""
    ends, needed = (REFUTED, HOLDS) if kind == "all" else (HOLDS, REFUTED)
    if ends in verdicts:
        return ends
    alike = set(verdicts)
    return alike.pop() if len(alike) == 1 and alike <= {needed, NOT_RUN} else UNDECIDED


def order(node: Node, metric: str, fixed: Row, cells: Cells, rules: Rules) -> Iterator[Finding]:
    sign = ">" if "above" in node else "<"
    groups = [rows_of(group, fixed) for group in node["above" if sign == ">" else "below"]]
    for left, right in (pair for neighbours in pairwise(groups) for pair in product(*neighbours)):
        sides = (cells.side(node["table"], row, metric) for row in (left, right))
        yield compare(metric, next(sides), sign, next(sides), rules, node.get("by", 0.0))


def trend(node: Node, metric: str, fixed: Row, cells: Cells, rules: Rules) -> Iterator[Finding]:
    """The last against the first; of a step between, only that it goes the other way counts."""
    kind, along = kind_of(node), node["along"]
    rows = sorted(rows_of(node[kind], fixed), key=lambda row: row[along])
    sides = [cells.side(node["table"], row, metric) for row in rows]
    sign = ">" if kind == "rises" else "<"
    yield compare(metric, sides[-1], sign, sides[0], rules, node.get("by", 0.0))
    for before, after in pairwise(sides) if len(sides) > 2 else ():
        step = compare(metric, after, sign, before, rules)
        has_seeds = fewest_seeds([before, after]) >= rules.seeds
        if step.verdict == UNDECIDED and has_seeds and not why_not_comparable([before, after]):
            step = replace(step, verdict=HOLDS, reason="a step between: does not go the other way")
        yield step


def similar(node: Node, metric: str, fixed: Row, cells: Cells, rules: Rules) -> Iterator[Finding]:
    """Neither of two is above the other by more than the share."""
    rows = [row for group in node["similar"] for row in rows_of(group, fixed)]
    sides = [cells.side(node["table"], row, metric) for row in rows]
    for number, right in enumerate(sides):
        for left in sides[number + 1 :]:
            both = (compare(metric, left, sign, right, rules, -node["within"]) for sign in "><")
            yield replace(min(both, key=lambda one: one.excess), sign="≈")


def threshold(node: Node, metric: str, fixed: Row, cells: Cells, rules: Rules) -> Iterator[Finding]:
    kind = kind_of(node)
    for row in rows_of(node[kind], fixed):
        side = cells.side(node["table"], row, metric)
        value = float(node["value"])
        if node.get("of_reachable") and side.measured:
            if side.reachable is None:
                side = replace(side, doubt=side.doubt or "the records do not say how many codes its tokens could reach")
            else:
                value *= side.reachable / 100
        bound = Side(f"{value:.4g}", Measured((value,)), value, is_exact=True)
        yield compare(metric, side, ">" if kind == "at_least" else "<", bound, rules)


def peak(node: Node, metric: str, fixed: Row, cells: Cells, rules: Rules) -> Iterator[Finding]:
    """The best of the middle half above the first and above the last."""
    for row in rows_of(node["peaks"], fixed):
        points = cells.history(node["table"], row, metric)
        if not points:
            yield Finding(NOT_RUN, metric, Side(label_of(row), None), reason=label_of(row))
        elif len(points) < node["points"]:
            reason = f"{len(points)} blocks have no middle: at least {node['points']} are needed"
            yield Finding(UNDECIDED, metric, points[-1], reason=reason)
        else:
            middle = points[len(points) // 4 : len(points) - len(points) // 4]
            best = max(middle, key=lambda side: side.measured.mean if side.measured else -math.inf)
            yield compare(metric, best, ">", points[0], rules)
            yield compare(metric, best, ">", points[-1], rules)


FINDINGS = {
    "above": order, "below": order, "rises": trend, "falls": trend, "similar": similar, "at_least": threshold,
    "at_most": threshold, "peaks": peak,
}  # fmt: skip


def kind_of(node: Node) -> str:
    return next(key for key in node if key in KEYS)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def each_of(node: Node) -> list[Row]:
    return rows_of(node.get("each", {}), {})


def rows_of(group: Any, fixed: Row) -> list[Row]:
    """A row, several in one by lists of values, or a list of those."""
    if isinstance(group, list):
        return [row for part in group for row in rows_of(part, fixed)]
    values = product(*(listed(value) for value in group.values()))
    return [dict(zip(group, each, strict=True)) | fixed for each in values]


def leaves(node: Node, given: Node | None = None) -> Iterator[tuple[str, list[Row], list[str]]]:
    """Of each comparison in a node: its table, the rows it reads, and the metrics."""
    kind = kind_of(node)
    node = {key: value for key, value in (given or {}).items() if key in SHARED} | node
    if kind in ("all", "any"):
        for child in node[kind]:
            yield from leaves(child, node)
    elif kind != "needs":
        rows = [row for fixed in each_of(node) for row in rows_of(node[kind], fixed)]
        yield node["table"], rows, listed(node["metric"])


def check(node: Any, given: Node | None = None) -> None:
    """Raises ValueError that names the key for a node that says nothing, or two things."""
    if not isinstance(node, dict):
        raise ValueError(f"test: '{node}' stands where `kind: ...` belongs; kinds: {', '.join(KEYS)}")
    kinds = [key for key in node if key in KEYS]
    if len(kinds) != 1:
        unknown = [key for key in node if key not in SHARED]
        expect(unknown if not kinds else (), KEYS, "test")
        raise ValueError(f"test: needs one of {', '.join(KEYS)}, has {', '.join(kinds) or 'none'}")
    (kind,) = kinds
    expect(node, (kind, *KEYS[kind], *SHARED), f"test, {kind}")
    node = {key: value for key, value in (given or {}).items() if key in SHARED} | node
    lists = ("all", "any", "above", "below", "similar")
    if not isinstance(node[kind], list if kind in lists else str if kind == "needs" else dict | list):
        raise ValueError(f"test, {kind}: takes a {'list' if kind in lists else 'text' if kind == 'needs' else 'row'}")
    if kind in ("all", "any"):
        for child in node[kind]:
            check(child, node)
    elif kind != "needs":
        required = [key for key in KEYS[kind] if key != "of_reachable"]
        if missing := [key for key in ("table", "metric", *required) if key not in node]:
            raise ValueError(f"test, {kind}: {missing[0]} is missing")
        for number in ("by", "within", "value", "points"):
            if not isinstance(node.get(number, 0), int | float):
                raise ValueError(f"test, {kind}: {number}={node[number]} must be a number")
        if kind in ("above", "below", "similar") and len([row for part in node[kind] for row in rows_of(part, {})]) < 2:
            raise ValueError(f"test, {kind}: needs at least two rows")
        if kind in ("rises", "falls") and not all(node["along"] in row for row in rows_of(node[kind], {})):
            raise ValueError(f"test, {kind}: every row needs the head '{node['along']}', along which it runs")
