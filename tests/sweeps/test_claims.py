"""Verdicts follow from numbers: each kind of predicate, on made-up ones; and the claims name cells that exist."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import ttest_ind

from sweeps import claims
from sweeps import verdicts as verdicts_module
from sweeps.claims_page import BY_T, OF_FIRST, Claim, Verdict, because, brief, page, pictures, quote, tally, words
from sweeps.differences import HOLDS, NOT_RUN, REFUTED, UNDECIDED, Rules, Side, compare
from sweeps.grid import label_of, load_grid
from sweeps.measure import Measured
from sweeps.predicates import Cells, check, combine, evaluate, leaves
from sweeps.schema import SWEEPS
from sweeps.verdicts import (
    SCALES,
    Records,
    difference_of,
    judge_claim,
    judged_by_itself,
    read_claims,
    share_tokenizer,
    verdicts_of,
)

CLAIMS = SWEEPS / "claims.yaml"


def side(*values: float, label: str = "x", protocols: tuple[str, ...] = ("p",), **others) -> Side:
    measured = Measured(values, frozenset(protocols), others.pop("version", ("code",))) if values else None
    return Side(label, measured, **others)


def verdict_of(test: dict, numbers: Mapping[str, tuple[float, ...]], histories=(), reachable=None) -> str:
    """Of a test on one table, whose rows have the number heads and these values."""

    def find(_: str, row: dict, __: str) -> Side:
        return side(*numbers.get(label_of(row), ()), label=label_of(row), reachable=reachable)

    test = {"table": "t#t", "metric": "m"} | test
    check(test)
    points = [side(*values, label=f"block {number}") for number, values in enumerate(histories, 1)]
    return evaluate(test, Cells(find, lambda *_: points), Rules())[0]


HIGH, LOW, BETWEEN, NEAR = (10.0, 10.1, 9.9), (1.0, 1.1, 0.9), (5.0, 5.1, 4.9), (1.05, 1.0, 0.9)
A, B, C = {"q": "a"}, {"q": "b"}, {"q": "c"}


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        (HIGH, LOW, HOLDS),
        (LOW, HIGH, REFUTED),
        (LOW, NEAR, UNDECIDED),
        (HIGH[:2], LOW, UNDECIDED),  # two seeds are too few
        (HIGH, (), NOT_RUN),
        ((), (), NOT_RUN),
    ],
)
def test_above_and_below(left: tuple, right: tuple, verdict: str) -> None:
    numbers = {"a": left, "b": right}
    assert verdict_of({"above": [A, B]}, numbers) == verdict
    assert verdict_of({"below": [B, A]}, numbers) == verdict


def test_two_standard_errors_decide() -> None:
    """Of means 0 and d with deviations 1 and three seeds a side: sqrt(2/3) is the error of the difference."""
    unit = (-1.0, 0.0, 1.0)
    error = math.sqrt(2 / 3)
    for factor, verdict in ((2.01, HOLDS), (1.99, UNDECIDED), (-1.99, UNDECIDED), (-2.01, REFUTED)):
        shifted = tuple(value + factor * error for value in unit)
        found = compare("m", side(*shifted), ">", side(*unit), Rules())
        assert found.verdict == verdict
        assert found.bound == pytest.approx(2 * error) and found.difference == pytest.approx(factor * error)


def test_students_t_has_welchs_degrees_of_freedom() -> None:
    """scipy's own test of unequal variances is at its 5 % where the difference is at the bound."""
    left, right = (1.0, 2.5, 4.1), (9.0, 9.5, 9.3, 9.1)
    bound = compare("m", side(*left), "<", side(*right), Rules(by_t=True)).bound
    shift = statistics.fmean(right) - statistics.fmean(left) - bound
    assert ttest_ind([value + shift for value in left], right, equal_var=False).pvalue == pytest.approx(0.05)
    exact = compare("m", side(*left), "<", side(9.0, is_exact=True), Rules(by_t=True)).bound
    assert exact == pytest.approx(4.3027 * statistics.stdev(left) / math.sqrt(3), rel=1e-4)
    assert compare("m", side(1.0, 1.0), "<", side(2.0, 2.0), Rules(by_t=True)).bound == 0


def test_how_many_seeds_would_decide() -> None:
    """n = 4 (1 + 1) / d^2 = 8 / 0.25 of deviations 1; and when nobody would train so many."""
    unit = (-1.0, 0.0, 1.0)
    near = compare("m", side(*(v + 0.6 for v in unit)), ">", side(*unit), Rules())
    assert near.reason == "about 23 seeds a side would decide, if means and spread stay"
    none = compare("m", side(*(v + 0.1 for v in unit)), ">", side(*unit), Rules())
    assert "no difference to speak of" in none.reason
    limit = compare("m", side(*(v + 9.5 for v in unit)), ">", side(10.0, 10.1, 9.9), Rules(), -0.05)
    assert limit.reason == "more than 30 seeds a side would be needed: the difference is about the share allowed"
    assert "one seed has no spread" in compare("m", side(1.0), ">", side(2.0), Rules()).reason


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"a": HIGH, "b": BETWEEN, "c": LOW}, HOLDS),
        ({"a": HIGH, "b": LOW, "c": BETWEEN}, REFUTED),
        ({"a": HIGH, "b": LOW, "c": NEAR}, UNDECIDED),
        ({"a": HIGH, "b": BETWEEN}, UNDECIDED),  # c is missing
    ],
)
def test_a_chain_is_of_neighbours(numbers: dict, verdict: str) -> None:
    assert verdict_of({"above": [A, B, C]}, numbers) == verdict


def test_a_list_of_values_is_several_rows() -> None:
    numbers = {"a": HIGH, "b": LOW, "c": BETWEEN}
    assert verdict_of({"above": [A, {"q": ["b", "c"]}]}, numbers) == HOLDS
    assert verdict_of({"below": [{"q": ["b", "c"]}, A]}, numbers) == HOLDS
    assert verdict_of({"above": [[A, B], C]}, numbers) == REFUTED
    both = {"a K=1": HIGH, "b K=1": LOW, "a K=2": LOW, "b K=2": HIGH}
    assert verdict_of({"above": [A, B], "each": {"K": 1}}, both) == HOLDS
    assert verdict_of({"above": [A, B], "each": {"K": [1, 2]}}, both) == REFUTED


def test_a_share_gives_way_or_asks_for_more() -> None:
    numbers = {"a": (10.0, 10.1, 9.9), "b": (10.2, 10.3, 10.1)}
    assert verdict_of({"above": [A, B]}, numbers) == REFUTED
    assert verdict_of({"above": [A, B], "by": -0.05}, numbers) == HOLDS
    assert verdict_of({"below": [A, B], "by": 0.05}, numbers) == REFUTED


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ((LOW, BETWEEN, HIGH), HOLDS),
        ((HIGH, BETWEEN, LOW), REFUTED),
        ((LOW, HIGH, BETWEEN), REFUTED),  # the last lies above the first, but a step falls
        ((LOW, NEAR, HIGH), HOLDS),  # a flat step is no fall
        ((LOW, LOW, NEAR), UNDECIDED),
        ((LOW, (), HIGH), UNDECIDED),
    ],
)
def test_rises_and_falls(values: tuple, verdict: str) -> None:
    row = {"q": "a", "K": [30, 4, 1000]}
    names = ["a K=4", "a K=30", "a K=1,000"]
    assert verdict_of({"rises": row, "along": "K"}, dict(zip(names, values, strict=True))) == verdict
    assert verdict_of({"falls": row, "along": "K"}, dict(zip(names, reversed(values), strict=True))) == verdict


@pytest.mark.parametrize(
    ("other", "verdict"),
    [((10.1, 10.2, 10.0), HOLDS), ((13.0, 13.1, 12.9), REFUTED), ((9.0, 12.0, 11.9), UNDECIDED), ((), NOT_RUN)],
)
def test_similar_means_shown_to_be_near(other: tuple, verdict: str) -> None:
    assert verdict_of({"similar": [A, B], "within": 0.1}, {"a": HIGH, "b": other}) == verdict
    assert verdict_of({"similar": [{"q": ["b", "a"]}], "within": 0.1}, {"a": HIGH, "b": other}) == verdict


@pytest.mark.parametrize(("value", "verdict"), [(9.5, HOLDS), (10.5, REFUTED), (10.0, UNDECIDED)])
def test_thresholds(value: float, verdict: str) -> None:
    assert verdict_of({"at_least": A, "value": value}, {"a": HIGH}) == verdict
    assert verdict_of({"at_most": A, "value": 20 - value}, {"a": HIGH}) == verdict
    assert verdict_of({"at_least": A, "value": value}, {}) == NOT_RUN


def test_usage_is_held_against_what_its_tokens_can_reach() -> None:
    test = {"at_least": A, "value": 99, "of_reachable": True}
    usage = {"a": (86.0, 86.1, 85.9)}
    assert verdict_of(test, usage, reachable=86.5) == HOLDS
    assert verdict_of(test, usage, reachable=100.0) == REFUTED
    assert verdict_of(test, usage, reachable=None) == UNDECIDED


def test_a_peak_is_in_the_middle_half() -> None:
    def blocks(*means: float) -> list[tuple[float, ...]]:
        return [(mean, mean + 0.1, mean - 0.1) for mean in means]

    test = {"peaks": A, "points": 8}
    for means, verdict in (
        ((1, 2, 3, 6, 5, 4, 3, 2), HOLDS),
        ((1, 2, 3, 4, 5, 6, 7, 8), REFUTED),
        ((1, 2, 3, 6, 5, 5, 5, 6), UNDECIDED),
        ((1, 5, 3, 2), UNDECIDED),  # too few to have a middle
        ((), NOT_RUN),
    ):
        assert verdict_of(test, {}, blocks(*means)) == verdict


def test_all_and_any_and_what_is_needed() -> None:
    holds, refuted, missing = {"above": [A, B]}, {"above": [B, A]}, {"needs": "a sweep"}
    numbers = {"a": HIGH, "b": LOW}
    for kind, parts, verdict in (
        ("all", [holds, holds], HOLDS), ("all", [holds, refuted], REFUTED), ("all", [holds, missing], UNDECIDED),
        ("all", [refuted, missing], REFUTED), ("all", [missing, missing], NOT_RUN), ("any", [holds, refuted], HOLDS),
        ("any", [refuted, refuted], REFUTED), ("any", [refuted, missing], UNDECIDED), ("any", [holds, missing], HOLDS),
    ):  # fmt: skip
        assert verdict_of({kind: parts}, numbers) == verdict
    assert combine([HOLDS, UNDECIDED]) == UNDECIDED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"protocols": ("q",)}, "measured in different ways: p; q"),
        ({"version": ("other",)}, "of different versions: code; other"),
        ({"data": "cifar10-binary"}, "trained on different images"),
        ({"doubt": "the judge also trained"}, "the judge also trained"),
    ],
)
def test_what_may_not_be_compared_decides_nothing(change: dict, words: str) -> None:
    found = compare("m", side(*HIGH), ">", side(*LOW, **change), Rules())
    assert (found.verdict, found.reason) == (UNDECIDED, words)


def test_a_step_between_of_too_few_seeds_is_open() -> None:
    test = {"falls": {"K": [1, 2, 3]}, "along": "K"}
    ends = {"1": HIGH, "3": LOW}
    assert verdict_of(test, ends | {"2": BETWEEN}) == HOLDS
    assert verdict_of(test, ends | {"2": BETWEEN[:1]}) == UNDECIDED


def test_seeds_of_stage_2_on_one_tokenizer_are_said_to_be_that() -> None:
    def share(*seeds: int | None) -> bool:
        return share_tokenizer([{"config": {} if seed is None else {"upstream": {"seed": seed}}} for seed in seeds])

    assert share(0, 0, 0) and not share(0, 1, 2) and not share(0) and not share(None, None) and not share()
    found = compare("m", side(*HIGH, shares_tokenizer=True), ">", side(*LOW), Rules())
    assert words(found).count(" on one tokenizer") == 1


def test_no_network_both_takes_part_and_judges() -> None:
    def words(config: dict, protocol: str) -> str:
        return judged_by_itself([{"config": config}], Measured((1.0,), frozenset({protocol})))

    lite0, lite2 = ("rfid/efficientnet-lite0@64px/n1", "rfid/efficientnet-lite2@64px/n1")
    trained = {"model": {"loss": {"perceptual": 0.1, "perceptual_network": "efficientnet-lite0"}}}
    assert "took part" in words(trained, lite0) and not words(trained, lite2)
    assert not words({"model": {"loss": {"perceptual": 0.0, "perceptual_network": "efficientnet-lite0"}}}, lite0)
    assert "took part" in words({"model": {"quantizer": {"source": {"encoder": "efficientnet-lite0"}}}}, lite0)
    assert not words({"model": {"metrics": {"extractor": "efficientnet-lite0"}}}, lite0)
    selected = "fid/efficientnet-lite2@64px/n1/accept-0.5-by-efficientnet-lite2@64px-head"
    assert "selected" in words({}, selected)
    assert "selected" in judged_by_itself([{"config": {}}], Measured((1.0,), chosen=frozenset({selected})))
    assert not words(trained, "psnr/rgb")


def test_a_margin_needs_two_seeds_a_side() -> None:
    def text(*values: float) -> str:
        found = compare("m", side(*values, label="a"), ">", side(*LOW, label="b"), Rules())
        return page([Verdict(Claim("T", "here", "a > b"), found.verdict, "quick", [found])])

    assert f"| {30 - statistics.fmean(LOW):+.3g} |" in text(30.0) and "±" in text(30.0, 31.0).partition("b (")[2]


def test_a_difference_of_metrics_is_taken_seed_by_seed() -> None:
    first, second = Measured((3.0, 5.0), frozenset({"p"})), Measured((1.0, 2.0), frozenset({"q"}))
    assert difference_of([first, second]) == Measured((2.0, 3.0), frozenset({"p", "q"}))
    assert difference_of([first, None]) is None and difference_of([first]) == first


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("test: {abov: [{quantizer: LC}, {quantizer: VQ}]}", "claim T: test: 'abov' is unknown; did you mean 'above'?"),
        ("test: {above: [{quantizer: LC}]}", "claim T: test, above: needs at least two rows"),
        ("test: {above: [{quantizer: LC, K: 3}, {quantizer: VQ}]}", "claim T: ablation_codebook#codebook: no row"),
        ("test: {above: [{quantiser: LC}, {quantizer: VQ}]}", "row head: 'quantiser' is unknown; did you mean"),
        ("test: {falls: {quantizer: LC}, along: K}", "claim T: test, falls: every row needs the head 'K'"),
        ("test: {at_least: {quantizer: LC}}", "claim T: test, at_least: value is missing"),
        ("test: {similar: [{quantizer: [LC, VQ]}], within: much}", "claim T: test, similar: within=much must be"),
        ("test: {needs: x}\n    colour: red", "claim T: key: 'colour' is unknown"),
        ("test: {needs: x}\n    table: ablation_codebook#x\n    seeds: none", "claim T: seeds=none: must be a number"),
        ("test: {above: [{quantizer: LC}, {quantizer: VQ}], metric: rfidd}", "metric: 'rfidd' is unknown"),
        ("test: {above: [{quantizer: LC}, {quantizer: VQ}], table: nothing#x}", "claim T: table: there is no"),
        ("test: {above: [{quantizer: LC}, {quantizer: VQ}], table: ablation_codebook#x}", "'x' is unknown"),
        ("statement: ''\n    test: {needs: x}", "claim T: statement: is missing"),
    ],
)
def test_a_bad_entry_is_one_error_that_names_file_claim_and_key(tmp_path: Path, change: str, words: str) -> None:
    path = tmp_path / "claims.yaml"
    entry = "claims:\n  - id: T\n    where: here\n    metric: psnr\n"
    entry += "" if "statement" in change else "    statement: words\n"
    entry += "" if "table" in change else "    table: ablation_codebook#codebook\n"
    path.write_text(f"{entry}    {change}\n")
    with pytest.raises(ValueError) as error:
        read_claims(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_every_claim_names_cells_that_exist() -> None:
    ids = [claim.id for claim in read_claims(CLAIMS)]
    assert {f"A{n}" for n in range(1, 13)} | {f"B{n}" for n in range(1, 14)} | {"X1", "X2"} <= set(ids)


def test_the_papers_own_numbers_bear_out_what_is_said_of_them() -> None:
    """With the paper's numbers in the place of ours no claim that they cover is refuted."""
    records = Records("paper", Path("nowhere"))

    def find(reference: str, row: dict, metric: str) -> Side:
        one = records.side(reference, row, metric)
        values = () if one.paper is None else (one.paper,) * 3
        return replace(side(*values, label=one.label), reachable=100.0)

    verdicts = {}
    for claim in read_claims(CLAIMS):
        cells = Cells(find, lambda *_: [])
        verdicts[claim.id], findings = evaluate(claim.test, cells, Rules(seeds=1), claim.given)
        wrong = [f"{each.left.label} {each.sign} {each.right}" for each in findings if each.verdict == REFUTED]
        ours = ("X3", "X7", "X10")  # against B-Table 6 and A-Table 4
        assert claim.id in ours or not wrong, claim.id
    holding = {name for name, verdict in verdicts.items() if verdict == HOLDS}
    assert {"A1", "A2", "A3", "A4", "A6", "A8", "A12", "B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10"} <= holding


def test_records_of_a_sweep_give_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From made-up records to the page: the scale that has most of the cells, the numbers and the digests."""
    test = {"above": [{"quantizer": "LC", "K": 1024}, {"quantizer": "VQ", "K": 1024}]}
    claim = Claim("T", "here", "LC above VQ", test, "ablation_codebook#codebook", "usage/epoch")
    grid = load_grid(SWEEPS / "ablation_codebook.yaml", "quick", "0,1,2")
    rows = {row.heads["quantizer"]: row for row in grid.tables[0].rows if row.heads["K"] == 1024}
    finished = {
        run.digest: {"metrics": {"usage/epoch": base + number}, "protocols": {"usage/epoch": "p"}, "config": {}}
        for name, base in (("LC", 90.0), ("VQ", 5.0))
        for number, run in enumerate(rows[name].runs)
    }
    monkeypatch.setattr(verdicts_module, "all_seeds", lambda _: [0, 1, 2])
    monkeypatch.setattr(
        verdicts_module, "finished_by_data", lambda g, _: {"cifar10-00000000": finished} if g.scale == "quick" else {}
    )
    verdict = judge_claim(claim, [Records(scale, tmp_path) for scale in ("reduced", "quick")])
    assert (verdict.verdict, verdict.scale) == (HOLDS, "quick")
    text = page([verdict])
    for run in (*rows["LC"].runs, *rows["VQ"].runs):
        assert f"`{run.digest}`" in text
    for part in ("**holds**", "LC, K 1,024 (91 ± 1, n = 3)", "scale quick, cifar10", "`p`", "holds: 1, refuted: 0"):
        assert part in text
    assert next(leaves(claim.test, claim.given))[0] == "ablation_codebook#codebook"


def test_the_published_page_is_what_the_published_records_say() -> None:
    """`make claims` writes it anew; no verdict is typed by hand."""
    verdicts = verdicts_of(CLAIMS, SCALES, Path("nowhere"))
    assert (SWEEPS.parent / "docs" / "claims.md").read_text() == page(verdicts)


def test_a_dry_run_prints_verdicts_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(tmp_path), "--output-dir", str(tmp_path / "runs"), "--scale", "cifar"]
    assert claims.main([*words, "--dry-run"]) == 0 and not list(tmp_path.iterdir())
    printed = capsys.readouterr().out
    assert "[X4](docs/claims.md#x4)" in printed and printed.endswith(f"docs/results.md of {tmp_path}\n")


def test_an_undecided_claim_says_how_far_it_holds() -> None:
    claim = Claim("X", "here", "a statement")
    held, again, still_open = (
        compare("m", side(*left, label=label), ">", side(*LOW), Rules())
        for label, left in (("a", HIGH), ("b", BETWEEN), ("c", HIGH[:1]))
    )
    said = because(Verdict(claim, UNDECIDED, "cifar", [held, still_open, again]))
    assert said.startswith("holds in 2 of 3 comparisons; open: m: c (10, n = 1) > x (1 ± 0.1, n = 3): 1 of 3 seeds")
    assert because(Verdict(claim, UNDECIDED, "cifar", [still_open])).startswith("open: m: c (10, n = 1) > x")
    assert because(Verdict(claim, HOLDS, "cifar", [held, again])).endswith("(the weakest of 2)")
    between = replace(again, reason="a step between: does not go the other way")
    assert because(Verdict(claim, HOLDS, "cifar", [held, between])) == because(Verdict(claim, HOLDS, "cifar", [held]))


def test_the_weakest_is_nearest_to_the_other_verdict_share_included() -> None:
    """Equal means are clear where 50 % are allowed; 10 and 9 are not where nothing is."""
    unit, claim = (-0.5, 0.0, 0.5), Claim("X", "here", "a statement")

    def at(mean: float, label: str) -> Side:
        return side(*(mean + value for value in unit), label=label)

    equal = compare("m", at(10, "equal"), ">", at(10, "x"), Rules(), -0.5)
    narrow = compare("m", at(10, "narrow"), ">", at(9, "x"), Rules())
    assert because(Verdict(claim, HOLDS, "cifar", [equal, narrow])).startswith("m: narrow")
    reversed_ = compare("m", at(9, "less"), ">", at(10, "x"), Rules())
    assert reversed_.verdict == REFUTED and " not > x (10" in because(Verdict(claim, REFUTED, "cifar", [reversed_]))


def test_similar_is_as_clear_as_its_nearer_side() -> None:
    """11 is within 20 % of 10, by 1 at the upper side and 3 at the lower."""
    test = {"similar": [A, B], "within": 0.2, "table": "t#t", "metric": "m"}
    numbers = {"a": (10.0, 10.1, 9.9), "b": (11.0, 11.1, 10.9)}
    cells = Cells(lambda _, row, __: side(*numbers[label_of(row)]), lambda *_: [])
    _, (found,) = evaluate(test, cells, Rules())
    assert (found.verdict, found.sign) == (HOLDS, "≈") and found.excess == pytest.approx(1.0)


def test_verdicts_say_what_a_stricter_test_and_fewer_seeds_change() -> None:
    ways = [{BY_T: HOLDS, OF_FIRST: HOLDS}, {BY_T: UNDECIDED, OF_FIRST: REFUTED}, {BY_T: UNDECIDED, OF_FIRST: HOLDS}]
    said = tally([Verdict(Claim(f"X{n}"), HOLDS, "cifar", [], way) for n, way in enumerate(ways)])
    assert said.endswith(f"{BY_T}, undecided: X1, X2. {OF_FIRST}, refuted: X1.")
    assert tally([Verdict(Claim("X0"), HOLDS, "cifar", [], ways[0])]).endswith("not run: 0.")


def test_the_first_seeds_alone() -> None:
    """With the fourth seed the difference is clear, without it not."""
    numbers = {"a": (10.0, 1.0, 1.1, 10.0, 10.0, 10.1, 10.0, 10.0), "b": LOW}
    cells = Cells(lambda _, row, __: side(*numbers[label_of(row)]), lambda *_: [side(*HIGH, 99.0)])
    test = {"above": [A, B], "table": "t#t", "metric": "m"}
    assert evaluate(test, cells, Rules())[0] == HOLDS and evaluate(test, cells.first(3), Rules())[0] == UNDECIDED
    (point,) = cells.first(3).history("t#t", A, "m")
    assert point.measured and point.measured.values == HIGH


def test_pages_quote_between_their_marks(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    begin, end = "<!-- verdicts: written by `make claims` -->", "<!-- end of verdicts -->"
    path.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    for _ in range(2):
        quote(path, {"verdicts": brief([], "docs/claims.md"), "pictures": "not marked here"})
    text = path.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "| verdict |" in text
    assert "\nold\n" not in text and "not marked" not in text


def test_the_pictures_are_of_the_largest_scale(tmp_path: Path) -> None:
    folder = tmp_path / "docs" / "tables"
    folder.mkdir(parents=True)
    for name in ("reduced_cifar10_plot", "cifar_cifar10_plot", "reconstructions_reduced_cifar10"):
        (folder / f"ablation_codebook_codebook_{name}.png").touch()
    text = pictures(tmp_path, ("cifar", "reduced"))
    assert "codebook_reconstructions_reduced_cifar10.png" in text and "codebook_cifar_cifar10_plot.png" in text
    assert "reduced_cifar10_plot" not in text
