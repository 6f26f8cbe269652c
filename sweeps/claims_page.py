"""The verdicts as a page: one table of all, then each claim with the numbers and records that decided it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.runtime.files import replacing
from experiments.runtime.records import data_name
from sweeps.differences import HOLDS, NOT_RUN, REFUTED, UNDECIDED, VERDICTS, Finding, Rules, Side
from sweeps.predicates import Node

TABLES = "docs/tables"
BY_T = "By Student's t at 95 % a comparison, in place of two standard errors"
OF_FIRST = "On the first three seeds of each side alone"
PICTURES = {  # of the first screen: words, and the file's name without scale and data
    "originals and reconstructions by quantizer": "ablation_codebook_codebook_reconstructions_{scale}_*.png",
    "utilisation against codebook size": "ablation_codebook_codebook_{scale}_*_plot.png",
}

HEAD = """# What holds of both papers' conclusions

Written by `make claims` from the result records alone; no verdict is typed by hand. Each claim is an entry of
[sweeps/claims.yaml](../sweeps/claims.yaml). "x > y": the means over seeds differ by more than two standard errors of
the difference, with at least three seeds a side. *Holds*: every comparison does. *Refuted*: one goes the other way by
as much. Of a series that rises or falls the last differs from the first; a step between must only not go the other way.
*Undecided*: neither, or too few seeds, or numbers that may not be compared, or only some comparisons were run.
*Not run*: no comparison has both its sides. *On one tokenizer*: the seeds are of stage 2 alone, and the spread of the
tokenizer is in no margin. *New*: a question of this project. *Post hoc*: one that was asked when some of its numbers
had been seen.
A network that took part in a training, or that selected images, is no judge of them: its numbers decide nothing.
± beside a mean is the standard deviation over seeds, beside a difference its margin, two standard errors. A statement
has the paper's words, such as rFID; the metric's name says who judged here: Inception (rFID), or another network (rFD).

Numbers are of small networks on small images: a verdict is about the scale that stands beside it, not the papers'.

"""


@dataclass
class Claim:
    """An entry of sweeps/claims.yaml."""

    id: str = ""
    where: str = ""  # paper and table
    statement: str = ""
    test: Node = field(default_factory=dict)
    table: str = ""  # handed down to the test: sweeps/<name>.yaml and the table in it, ablation_codebook#codebook
    metric: Any = ""
    seeds: int = 3
    margin: float = 2.0

    @property
    def given(self) -> Node:
        return {key: value for key in ("table", "metric") if (value := getattr(self, key))}

    @property
    def rules(self) -> Rules:
        return Rules(self.seeds, self.margin)


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    verdict: str
    scale: str  # "" where no cell is finished at any
    findings: list[Finding]
    others: Mapping[str, str] = field(default_factory=dict)  # the verdict in other ways: BY_T, OF_FIRST


def page(verdicts: Sequence[Verdict]) -> str:
    lines = ["| claim | where | statement | verdict | scale | because |", "|---|---|---|---|---|---|"]
    for each in verdicts:
        claim = each.claim
        verdict = (f"**{each.verdict}**", each.scale, because(each))
        lines.append(row(f"[{claim.id}](#{claim.id.lower()})", claim.where, claim.statement, *verdict))
    return f"{HEAD}{tally(verdicts)}\n\n" + "\n".join(lines) + "\n" + "".join(map(section, verdicts))


def brief(verdicts: Sequence[Verdict], link: str) -> str:
    """For other pages, which name the page of the sections by `link`; claims that were not run share a line."""
    lines = [tally(verdicts), "", "| claim | statement | verdict | because |", "|---|---|---|---|"]
    missing = []
    for each in verdicts:
        claim = each.claim
        at = f"[{claim.id}]({link}#{claim.id.lower()})"
        if each.verdict == NOT_RUN:
            missing.append(at)
        else:
            verdict = f"**{each.verdict}** at {each.scale}"
            lines.append(row(at, f"{claim.statement} ({claim.where})", verdict, because(each)))
    return "\n".join(lines) + (f"\n\nNot run: {', '.join(missing)}.\n" if missing else "\n")


def tally(verdicts: Sequence[Verdict]) -> str:
    counts = (f"{name}: {sum(each.verdict == name for each in verdicts)}" for name in VERDICTS)
    return " ".join([f"Of {len(verdicts)} claims, {', '.join(counts)}.", *reservations(verdicts)])


def reservations(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Which verdicts would be others by a stricter test, and on fewer seeds."""
    for way in (BY_T, OF_FIRST):
        changed = [each for each in verdicts if each.others.get(way, each.verdict) != each.verdict]
        ids = {name: ", ".join(each.claim.id for each in changed if each.others[way] == name) for name in VERDICTS}
        if changed:
            yield f"{way}, {'; '.join(f'{name}: {some}' for name, some in ids.items() if some)}."


def row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def because(each: Verdict) -> str:
    """The comparison nearest to the other verdict, or why there is none."""
    deciding = [finding for finding in each.findings if finding.verdict == each.verdict]
    if each.verdict == HOLDS:  # a step between that only does not go the other way decides nothing
        deciding = [finding for finding in deciding if not finding.reason]
    if each.verdict == NOT_RUN:
        return (
            "; ".join(dict.fromkeys(finding.left.label for finding in each.findings if not finding.right))
            or "no comparison has both its sides"
        )
    if not deciding:  # some parts hold, others were not run
        missing = sum(finding.verdict == NOT_RUN for finding in each.findings)
        return f"{missing} of {len(each.findings)} comparisons not run"
    if each.verdict == REFUTED:
        return words(max(deciding, key=lambda finding: finding.clearness), "not ")
    finding = min(deciding, key=lambda finding: finding.clearness)
    if each.verdict == UNDECIDED:
        held = sum(other.verdict == HOLDS for other in each.findings)
        start = f"holds in {held} of {len(each.findings)} comparisons; " if held else ""
        return f"{start}open: {words(finding)}: {finding.reason}"
    return words(finding) + f" (the weakest of {len(deciding)})" * (len(deciding) > 1)


def words(finding: Finding, negation: str = "") -> str:
    if finding.right is None:
        return finding.left.label
    return f"{metric(finding)}: {side(finding.left)} {negation}{sign(finding)} {side(finding.right)}"


def sign(finding: Finding) -> str:
    """The relation as it was tested; "> 5 % less than" where the share gives way."""
    if finding.sign == "≈":
        return f"within {-finding.share:.0%} of".replace("%", " %")
    if not finding.share:
        return finding.sign
    return f"{finding.sign} {1 + (finding.share if finding.sign == '>' else -finding.share):.4g} x"


def side(one: Side) -> str:
    if one.measured is None or one.is_exact:
        return one.label
    std = one.measured.std
    spread = "" if std is None else f" ± {number(std)}"
    apart = " on one tokenizer" * one.shares_tokenizer
    return f"{one.label} ({number(one.measured.mean)}{spread}, n = {len(one.measured.values)}{apart})"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def section(each: Verdict) -> str:
    claim = each.claim
    rules = f"{claim.rules.margin:g} standard errors, at least {claim.rules.seeds} seeds a side"
    images = sorted({data_name(one.data) for one in sides(each.findings) if one.data})
    at = f"scale {each.scale}, {', '.join(images)}; " if each.scale else ""
    parts = [f'\n<a id="{claim.id.lower()}"></a>\n\n## {claim.id}: {each.verdict}\n', f"{claim.statement}", ""]
    parts += [f"{claim.where}; {at}{rules}.", ""]
    parts += [row("metric", "compared", "difference", "has to be", "paper", "verdict"), "|---|---|---|---|---|---|"]
    parts += [line(finding) for finding in each.findings]
    if protocols := sorted({one for each_side in sides(each.findings) for one in protocols_of(each_side)}):
        parts += ["", f"Protocols: {', '.join(f'`{one}`' for one in protocols)}."]
    if versions := sorted(
        {" ".join(filter(None, one.measured.version)) for one in sides(each.findings) if one.measured}
    ):
        parts += ["", f"Code and arithmetic: {', '.join(versions)}."]
    if records := list(dict.fromkeys(map(records_of, filter(lambda one: one.digests, sides(each.findings))))):
        parts += ["", f"Records: {'; '.join(records)}."]
    return "\n".join(parts) + "\n"


def line(finding: Finding) -> str:
    compared = words(finding).partition(": ")[2] if finding.right else finding.left.label
    if math.isnan(finding.difference) or finding.right is None or finding.right.measured is None:
        return row(metric(finding), compared, "", "", paper(finding), verdict_of(finding))
    has_spread = all(one.is_exact or (one.measured and one.measured.std is not None) for one in sides([finding]))
    difference = f"{finding.difference:+.3g}" + f" ± {finding.bound:.3g}" * has_spread
    limit = finding.share * abs(finding.right.measured.mean)
    needed = {">": f"above {limit:.3g}", "<": f"below {0 - limit:.3g}", "≈": f"within ± {abs(limit):.3g}"}[finding.sign]
    return row(metric(finding), compared, difference, needed, paper(finding), verdict_of(finding))


def metric(finding: Finding) -> str:
    return finding.left.head or finding.metric


def verdict_of(finding: Finding) -> str:
    return f"{finding.verdict}: {finding.reason}" if finding.reason else finding.verdict


def paper(finding: Finding) -> str:
    """The paper's numbers of the two cells."""
    numbers = [one.paper for one in (finding.left, finding.right) if one is not None and not one.is_exact]
    return ", ".join(f"{number:.4g}" for number in numbers if number is not None) if None not in numbers else ""


def sides(findings: Iterable[Finding]) -> Iterator[Side]:
    for finding in findings:
        yield from (one for one in (finding.left, finding.right) if one is not None and not one.is_exact)


def protocols_of(one: Side) -> frozenset[str]:
    return one.measured.all_protocols if one.measured else frozenset()


def records_of(one: Side) -> str:
    return f"{one.label} {', '.join(f'`{digest}`' for digest in one.digests)}"


# ---- what other pages quote


def quote(path: Path, blocks: Mapping[str, str]) -> None:
    """Fills what stands between the marks of each block in a page that has them."""
    text = path.read_text() if path.is_file() else ""
    for name, content in blocks.items():
        begin, end = f"<!-- {name}: written by `make claims` -->\n", f"<!-- end of {name} -->"
        if begin in text and end in text:
            text = f"{text.partition(begin)[0]}{begin}\n{content}\n{end}{text.partition(end)[2]}"
            write(path, text)


def pictures(root: Path, scales: Sequence[str]) -> str:
    """Links to each picture of the first screen, of the first scale that has it."""
    lines = []
    for words, pattern in PICTURES.items():
        files = [path for scale in scales for path in sorted((root / TABLES).glob(pattern.format(scale=scale)))]
        lines += [f"![{words}]({TABLES}/{files[0].name})\n"] if files else []
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())
