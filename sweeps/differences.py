"""Whether two numbers differ: their means over seeds, the error of the difference, and what may not be compared.

"x > y" means that the means over seeds differ by more than `margin` standard errors of the difference, with `seeds` a
side; the other way by as much, and it is refuted; else it is undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import t

from sweeps.measure import Measured

HOLDS, REFUTED, UNDECIDED, NOT_RUN = VERDICTS = ("holds", "refuted", "undecided", "not run")
MANY_SEEDS = 30  # that nobody would train for a difference so small


@dataclass(frozen=True)
class Side:
    """A number that is compared. `is_exact`: a constant, without spread."""

    label: str
    measured: Measured | None
    paper: float | None = None
    digests: tuple[str, ...] = ()
    data: str = ""
    doubt: str = ""  # why the number cannot be relied on
    reachable: float | None = None  # percent of the codes that its tokens can use
    is_exact: bool = False
    head: str = ""  # what the number is, as a table heads it: with the judge's name
    shares_tokenizer: bool = False  # seeds of stage 2 on one tokenizer, whose spread is not theirs

    @property
    def variance(self) -> float:
        """Of the mean."""
        std = None if self.measured is None or self.is_exact else self.measured.std
        return 0.0 if std is None or self.measured is None else std**2 / len(self.measured.values)

    def first(self, seeds: int) -> "Side":
        """Of the first seeds alone."""
        return replace(self, measured=self.measured and replace(self.measured, values=self.measured.values[:seeds]))


@dataclass(frozen=True)
class Finding:
    """One comparison, or a part of a claim that was not run, with all that its verdict was computed from."""

    verdict: str
    metric: str
    left: Side
    sign: str = ""  # > or <
    right: Side | None = None
    share: float = 0.0
    difference: float = math.nan
    excess: float = math.nan  # what the difference has in the tested direction beyond the share
    bound: float = math.nan  # that it has to exceed
    reason: str = ""

    @property
    def clearness(self) -> float:
        """How far the verdict is from undecided: 1 at its edge; -inf without numbers."""
        if math.isnan(self.excess):
            return -math.inf
        return abs(self.excess) / self.bound if self.bound else math.inf


@dataclass(frozen=True)
class Rules:
    seeds: int = 3
    margin: float = 2.0
    by_t: bool = False  # Student's t at 95 %, two-sided, in place of the margin

    def bound(self, sides: Sequence[Side]) -> float:
        """What a difference has to exceed. The degrees of freedom of t are Welch's."""
        variance = sum(side.variance for side in sides)
        if not self.by_t or not variance:
            return self.margin * math.sqrt(variance)
        spread = [(side.variance, len(side.measured.values)) for side in sides if side.measured and side.variance]
        freedom = variance**2 / sum(each**2 / (seeds - 1) for each, seeds in spread)
        return float(t.ppf(0.975, freedom)) * math.sqrt(variance)


def compare(metric: str, left: Side, sign: str, right: Side, rules: Rules, share: float = 0.0) -> Finding:
    """Whether left > right (or <) by more than the share of right."""
    found = Finding(UNDECIDED, metric, left, sign, right, share)
    sides = [side for side in (left, right) if not side.is_exact]
    if missing := [side.label for side in sides if side.measured is None]:
        return replace(found, verdict=NOT_RUN, reason="; ".join(missing))
    assert left.measured and right.measured
    difference = left.measured.mean - right.measured.mean
    bound = rules.bound([left, right])
    excess = (difference if sign == ">" else -difference) - share * abs(right.measured.mean)
    found = replace(found, difference=difference, excess=excess, bound=bound)
    if reason := why_not_comparable(sides):
        return replace(found, reason=reason)
    fewest = fewest_seeds(sides)
    if fewest >= rules.seeds and abs(excess) > bound:
        return replace(found, verdict=HOLDS if excess > 0 else REFUTED)
    have = f"{fewest} of {rules.seeds} seeds; " if fewest < rules.seeds else ""
    return replace(found, reason=have + more_seeds(excess, sides, rules, share))


def fewest_seeds(sides: Sequence[Side]) -> int:
    return min(len(side.measured.values) if side.measured else 0 for side in sides)


def why_not_comparable(sides: Sequence[Side]) -> str:
    if doubts := sorted({side.doubt for side in sides if side.doubt}):
        return doubts[0]
    measured = [side.measured for side in sides if side.measured]
    stated = {one.protocols for one in measured if one.protocols}
    if len(stated) > 1 or any(len(protocols) > 2 for protocols in stated):
        return f"measured in different ways: {'; '.join(sorted(', '.join(sorted(each)) for each in stated))}"
    if len({side.data for side in sides}) > 1:
        return "trained on different images"
    if len({one.version for one in measured}) > 1:
        return f"of different versions: {'; '.join(sorted(' '.join(one.version) for one in measured))}"
    return ""


def more_seeds(excess: float, sides: Sequence[Side], rules: Rules, share: float) -> str:
    """How many seeds a side would decide, should mean and spread stay as they are."""
    if any(side.measured and side.measured.std is None for side in sides):
        return f"one seed has no spread: {rules.seeds} seeds a side are needed"
    variance = sum(side.variance * len(side.measured.values) for side in sides if side.measured)
    wanted = rules.margin**2 * variance / excess**2 if excess else math.inf
    if wanted > MANY_SEEDS:
        why = "the difference is about the share allowed" if share else "no difference to speak of"
        return f"more than {MANY_SEEDS} seeds a side would be needed: {why}"
    return f"about {max(rules.seeds, math.floor(wanted) + 1)} seeds a side would decide, if means and spread stay"
