"""Tables say what the records say: mean, spread, difference, and nothing where there is nothing."""

import re
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from experiments.config.values import read_yaml
from experiments.costs.papers import paper_counts
from experiments.runtime import code_version
from experiments.runtime.files import write_json
from experiments.runtime.records import record_path
from lightning_modules.networks.gpt import GPT_SIZES
from sweeps import grid as grid_module
from sweeps import plots
from sweeps import table as table_module
from sweeps.counted import counted
from sweeps.grid import SWEEPS, Grid, Run, load_grid
from sweeps.heads import own_head
from sweeps.measure import Measured, is_better, measure
from sweeps.plots import is_near, write_plot
from sweeps.render import draw, escape, latex, markdown, plain, replace_file, write_sheet
from sweeps.run import main as run_main
from sweeps.sheet import make_sheet

SWEEP = """
title: A test
tables:
  - id: one
    title: Quantizers & codes
    paper: "a paper, Table 1"
    row_heads: [quantizer, K]
    columns:
      - {metric: usage/epoch, head: util %, format: .1f}
      - {metric: ssim, head: SSIM %, format: .1f, scale: 100}
      - {metric: psnr, head: PSNR}
    plot: {kind: rows, x: K, line: quantizer, metrics: [usage/epoch]}
    cells:
      - {row: {quantizer: other, K: 7}, paper: {ssim: 50.0}}
      - {experiment: vqgan, row: {quantizer: VQ, K: 16}, set: {model.codebook_size: 16},
         paper: {usage/epoch: 3.5, ssim: 52.4}}
      - {experiment: vqgan, row: {quantizer: VQ, K: 32}, set: {model.codebook_size: 32}, paper: {usage/epoch: 99}}
      - {experiment: vqgan, row: {quantizer: VQ, K: 64}, set: {model.codebook_size: 64}}
"""
TRAIN = read_yaml(SWEEPS / "scales" / "quick.yaml")["overrides"]["data.train_size"]
METRICS = {"usage/epoch": 80.25, "ssim": 0.5, "psnr": 20.0}


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vqgan_cifar10.yaml").write_text("model:\n  name: vqgan\ndata:\n  name: cifar10\n")
    monkeypatch.setattr(grid_module, "EXPERIMENTS", tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def record(metrics: dict, protocol: str = "p1", commit: str = "abc") -> dict:
    return {"metrics": metrics, "protocols": dict.fromkeys(metrics, protocol), "environment": {"commit": commit}}


def sheet_of(grid: Grid, found: dict, data_id: str = "cifar10-export"):
    return make_sheet(grid, grid.tables[0], {data_id: found}, data_id)


def test_mean_spread_difference_and_empty_cells(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick", "0,1")
    first, second = grid.tables[0].rows[1].runs
    found = {first.digest: record(METRICS), second.digest: record(METRICS | {"usage/epoch": 90.25, "ssim": 0.6})}
    single = grid.tables[0].rows[2].runs[0]
    found[single.digest] = record({"usage/epoch": 5.0})
    sheet, warnings = sheet_of(grid, found, "image_folder")
    assert warnings == []
    assert [head for head, _ in sheet.groups] == ["quantizer", "K", "util %", "SSIM %", "PSNR"]
    assert sheet.groups[2:] == [("util %", ["paper", "ours", "diff"]), ("SSIM %", ["paper", "ours", "diff"]),
                                ("PSNR", ["ours"])]  # fmt: skip
    usage = f"85.2 ± {statistics.stdev([80.25, 90.25]):.1f}"
    ssim = f"55.0 ± {statistics.stdev([50.0, 60.0]):.1f}"
    assert sheet.body == [
        ["VQ", "16", "3.5", usage, "+81.8", "52.4", ssim, "+2.6", "20.00 ± 0.00"],
        ["VQ", "32", "99.0", "5.0 (1)", "-94.0", "", "", "", ""],
        ["VQ", "64", "", "", "", "", "", "", ""],
    ]
    text = " ".join(sheet.caption + sheet.notes)
    for words in ("image_folder", f"{TRAIN:,} training and 1,000 val", "scale quick", "seeds 0, 1", "util %: p1",
                  "a paper, Table 1", "3 of 6 runs are missing", "Commit abc", "over 2 seeds"):  # fmt: skip
        assert words in text
    assert sheet.warning == "" and len(sheet.caption) == 2 and "p1" not in " ".join(sheet.caption)


def test_what_only_the_paper_has_is_folded_below_and_in_no_picture(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record({"usage/epoch": 80.25})})
    assert [head for head, _ in sheet.groups] == ["quantizer", "K", "util %"], "columns without a number of ours"
    assert sheet.folded is not None
    assert sheet.folded.body == [["other", "7", "", "50.0"], ["VQ", "16", "3.5", "52.4"]]
    assert "Not measured: SSIM %, PSNR." in sheet.notes
    text = markdown(sheet)
    assert text.index("| VQ | 16 |") < text.index("<details>") < text.index("| other | 7 |")
    assert "other & 7" not in latex(sheet) and "52.4" not in latex(sheet) + plain(sheet)


def test_the_best_of_ours_is_bold_and_nothing_else(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    numbers = [{"usage/epoch": 10.0, "psnr": 20.0}, {"usage/epoch": 99.0, "psnr": 21.0}, {"usage/epoch": 5.0}]
    sheet, _ = sheet_of(grid, {run.digest: record(each) for run, each in zip(grid.runs, numbers, strict=True)})
    assert [sheet.body[row][column] for row, column in sorted(sheet.best)] == ["99.0", "21.00"]
    assert markdown(sheet).count("**") == 2 * 3 and latex(sheet).count("textbf") == 2
    drawn = [text.get_text() for text in draw(sheet).axes[0].texts if text.get_weight() == "bold"]
    assert {"99.0", "21.00"} <= set(drawn) and "10.0" not in drawn
    alone, _ = sheet_of(grid, {grid.runs[0].digest: record(METRICS)})
    equal, _ = sheet_of(grid, {run.digest: record(METRICS) for run in grid.runs})
    assert not alone.best and not equal.best, "one number is not the best of anything"
    assert is_better("bits_per_token/val") == 0, "bits of tokens of two tokenizers do not compare"


def test_runs_of_different_code_or_arithmetic_never_share_a_mean(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick", "0,1,2")
    runs = grid.tables[0].rows[1].runs
    for change in ({"environment": {"commit": "other"}}, {"config": {"trainer": {"precision": "bf16-mixed"}}}):
        found = {run.digest: record({"usage/epoch": 50.0 + number}) for number, run in enumerate(runs)}
        found[runs[0].digest] |= change
        sheet, _ = sheet_of(grid, found)
        assert sheet.body[0][3].startswith("51.5 ± 0.7")


def test_usage_stands_beside_what_its_tokens_can_reach(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    few, enough = ({"usage/epoch": 60.0, "reachable/epoch": bound} for bound in (86.5, 99.995))
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record(few), grid.runs[1].digest: record(enough)})
    assert [row[3] for row in sheet.body] == ["60.0 of 86.5", "60.0", ""]


def test_a_number_that_a_row_chooses_keeps_its_protocol_uncompared(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP.replace("K: 16}, set", "K: 16}, use: {psnr: ssim}, set"))
    grid = load_grid(sweep_file, "quick")
    found = {run.digest: record(METRICS) | {"protocols": {"ssim": "s", "psnr": "p"}} for run in grid.runs}
    column = grid.tables[0].spec.columns[-1]
    chosen, plain_one = (measure(column, row, found) for row in grid.tables[0].rows[1:3])
    assert chosen and plain_one and (chosen.protocols, chosen.chosen) == (frozenset(), frozenset({"s"}))
    assert (plain_one.protocols, plain_one.chosen) == (frozenset({"p"}), frozenset())


def test_codes_in_use_are_usage_as_a_number_ours_and_the_papers(sweep_file: Path) -> None:
    sweep_file.write_text(
        SWEEP.replace("{metric: psnr, head: PSNR}", "{metric: codes/epoch, head: codes, format: .0f}")
    )
    grid = load_grid(sweep_file, "quick", "0,1")
    found = {
        run.digest: record({"usage/epoch": usage}) | {"config": {"model": {"codebook_size": 16}}}
        for run, usage in zip(grid.tables[0].rows[1].runs, [75.0, 87.5], strict=True)
    }
    sheet, _ = sheet_of(grid, found)
    assert ("codes", ["paper", "ours"]) in sheet.groups
    assert sheet.body[0][-2:] == [format(3.5 / 100 * 16, ".0f"), f"13 ± {statistics.stdev([12, 14]):.0f}"]


def test_another_judge_than_inception_is_named_and_has_a_head_of_its_own(sweep_file: Path) -> None:
    sweep_file.write_text(
        SWEEP.replace("metric: ssim, head: SSIM %", "metric: rfid, head: rFID").replace("ssim:", "rfid:")
    )
    grid = load_grid(sweep_file, "quick")
    for protocol, groups in (
        ("rfid/efficientnet-lite2@64px/n1", [("rFID", ["paper"]), ("rFD (Lite2)", ["ours"])]),
        ("rfid/dinov2-vit-l-14@224px/n1", [("rFID", ["paper"]), ("rFD (dinov2-vit-l-14)", ["ours"])]),
        ("rfid/inception-v3-compat/n1", [("rFID", ["paper", "ours"])]),
    ):
        sheet, _ = sheet_of(grid, {grid.runs[0].digest: record({"rfid": 5.0}, protocol)})
        assert sheet.groups[2:] == groups


@pytest.mark.parametrize(
    ("head", "text", "expected"),
    [
        ("generator", "GPT-404M", "GPT"),
        ("size", "Large 1697M", ""),
        ("stage 2", "VIM-Base 650M", "VIM"),
        ("data", "ImageNet", "cifar10-export"),
        ("tokens", "256", "64"),
        ("latent", "32 x 32", "8 x 8"),
        ("size", "Channels x2", "Channels x2"),
        ("quantizer", "FC+l2", "FC+l2"),
    ],
)
def test_heads_at_a_small_scale_say_what_was_trained(head: str, text: str, expected: str) -> None:
    (run, *_) = load_grid(SWEEPS / "vit_vqgan/table6.yaml", "quick").runs
    own = own_head(head, text, run.experiment, "cifar10-export")
    assert re.sub(r" ?\d+\.\d+M$", "", own) == expected
    assert own == text or not re.search("404|1697|650|ImageNet|256|32", own)


def test_pictures_are_small(tmp_path: Path) -> None:
    figure = Figure((20, 12))
    figure.subplots().imshow(np.random.default_rng(0).random((40, 60, 3)))
    replace_file(tmp_path / "a.png", figure)
    picture = Image.open(tmp_path / "a.png")
    assert max(picture.size) <= 1600 and (tmp_path / "a.png").stat().st_size <= 80_000


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [
        ((1838.2, 1863.0), ".4g", "1851 ± 18"),
        ((2.77, 3.477), ".4g", "3.123 ± 0.500"),
        ((48,), ".1f", "48.0"),
        ((170.0, 170.0), ".4g", "170.0 ± 0.0"),
    ],
)
def test_a_spread_has_the_decimals_of_its_mean(values: tuple[float, ...], form: str, text: str) -> None:
    assert Measured(values).text(form) == text


@pytest.mark.parametrize("protocol", ["rfid/efficientnet-lite0@64px/n1", "training/cpu"])
def test_no_difference_on_another_scale_than_the_papers(sweep_file: Path, protocol: str) -> None:
    grid = load_grid(sweep_file, "quick")
    changed = record(METRICS)
    changed["protocols"] = changed["protocols"] | {"usage/epoch": protocol}
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: changed}, "image_folder")
    assert [head for head, subs in sheet.groups if "diff" in subs] == ["SSIM %"]
    assert sheet.body[0][2:5] == ["3.5", "80.2", "52.4"]
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: changed})
    assert "diff" not in str(sheet.groups), "other images than the paper's"


def test_other_protocols_and_commits_are_flagged(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    runs = grid.runs
    found = {run.digest: record(METRICS) for run in runs[:2]}
    found[runs[2].digest] = record(METRICS, protocol="p2", commit="def")
    sheet, warnings = sheet_of(grid, found)
    assert [row[3] for row in sheet.body] == ["80.2", "80.2", "80.2 †"]
    for lines in (warnings, sheet.notes):
        assert any("usage/epoch" in line and "'p1'" in line and "'p2'" in line for line in lines)
    assert any("different commits, whose code could not be compared here: abc; def" in line for line in warnings)


def test_samplers_of_other_generators_do_not_part_rows_but_the_number_of_images_does() -> None:
    grid = load_grid("vqgan_lc/table4", "quick", "0,")
    ldm, sit, dit = (
        grid.chosen([f"generator={name} tokenizer=VQGAN-LC K=16384"])[0] for name in ("LDM", "SiT-XL", "DiT-XL")
    )

    def drawn(run: Run, fid: float, n: int = 128) -> dict:
        return record({"fid": fid}, protocol=f"fid/network/{run.experiment.model.sampling.id}/n{n}")

    found = {ldm.digest: drawn(ldm, 3.0), sit.digest: drawn(sit, 2.0), dit.digest: drawn(dit, 1.0, n=64)}
    sheet, _ = sheet_of(grid, found)
    at = len(sheet.body[0]) - 1
    ours = {row[0].split()[0]: row[at] for row in sheet.body if row[at]}
    assert ours == {"SiT": "2.000", "DiT": "1.000 †", "LDM": "3.000"}
    assert {sheet.body[number][0].split()[0] for number, column in sheet.best if column == at} == {"SiT"}
    text = " ".join(sheet.notes)
    samplers = sorted(run.experiment.model.sampling.id for run in (ldm, sit, dit))
    assert "FID: fid/network/n128" in text and f"Images are drawn by {', '.join(samplers)}" in text


def test_cells_of_different_code_are_flagged_in_the_caption(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits whose code that decides numbers is the same are one version."""
    codes = {"aa": "code1", "bb": "code1", "cc": "code2"}

    def of_record(record: dict) -> str:
        made_on = record["environment"]
        return "" if made_on.get("dirty") else codes[made_on["commit"]]

    monkeypatch.setattr(code_version, "of_record", of_record)
    grid = load_grid(sweep_file, "quick")

    def caption(*commits: str) -> tuple[str, list[str]]:
        found = {run.digest: record(METRICS, commit=c) for run, c in zip(grid.runs, commits, strict=True)}
        sheet, warnings = sheet_of(grid, found)
        return sheet.notes[-1], warnings

    assert caption("aa", "aa", "aa") == ("Commit aa.", [])
    assert caption("aa", "bb", "aa") == ("Commit aa = bb.", [])
    text, warnings = caption("aa", "cc", "bb")
    assert text == "WARNING: cells of 2 versions of the code that decides numbers, by commit: aa = bb; cc."
    assert len(warnings) == 1 and "table one: cells of 2 versions" in warnings[0]
    changed = record(METRICS, commit="aa")
    changed["environment"] |= {"dirty": True}
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record(METRICS, commit="aa"), grid.runs[1].digest: changed})
    assert sheet.notes[-1].endswith("whose code could not be compared here: aa; aa+changes.")


def test_shapes_are_never_mistaken_for_images(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record(METRICS)}, "shapes")
    for text in (markdown(sheet), latex(sheet), plain(sheet)):
        assert "NOT REAL IMAGES" in text


def test_latex_is_well_formed(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick", "0,1")
    sheet, _ = sheet_of(grid, {run.digest: record(METRICS) for run in grid.runs})
    text = latex(sheet)
    for name in ("table", "tabular"):
        assert text.count(f"\\begin{{{name}}}") == text.count(f"\\end{{{name}}}") == 1
    unescaped = text.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    assert unescaped.count("{") == unescaped.count("}")
    assert unescaped.replace("\\$", "").count("$") % 2 == 0
    body = text.split("\\toprule")[1].split("\\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 2 + 3
    num_columns = len(sheet.body[0])
    for row in rows[1:]:  # the first has \multicolumn
        assert row.replace("\\&", "").count("&") == num_columns - 1
    assert "Quantizers \\& codes" in text and "util \\%" in text
    assert escape("a_b^c\\d") == r"a\_b\textasciicircum{}c\textbackslash{}d"


def test_a_row_that_is_set_apart_has_a_rule_above_it(sweep_file: Path) -> None:
    mark = "row: {quantizer: VQ, K: 32}"
    sweep_file.write_text(SWEEP.replace(mark, f"{mark}, rule: true"))
    grid = load_grid(sweep_file, "quick")
    sheet, _ = sheet_of(grid, {run.digest: record(METRICS) for run in grid.runs})
    assert sheet.breaks == [1]
    width = len(sheet.body[0])
    lines = markdown(sheet).splitlines()
    assert [cell.strip() for cell in lines[lines.index(next(x for x in lines if "| 32 |" in x)) - 1].split("|")] == (
        [""] * (width + 2)
    )
    for text, rule in ((latex(sheet), r"\midrule[\heavyrulewidth]"), (plain(sheet), "-----")):
        lines = text.splitlines()
        (at,) = (i for i, line in enumerate(lines) if line.startswith(rule))
        assert " 16 " in lines[at - 1] and " 32 " in lines[at + 1]
    drawn = [line for line in draw(sheet).axes[0].lines if line.get_linewidth() == 1.2]
    assert len(drawn) == 3, "above, below, and at the row"

    sweep_file.write_text(SWEEP)
    grid = load_grid(sweep_file, "quick")
    plainer, _ = sheet_of(grid, {run.digest: record(METRICS) for run in grid.runs})
    assert plainer.breaks == [] and "heavyrulewidth" not in latex(plainer)


def figure_of(sweep_file: Path, monkeypatch: pytest.MonkeyPatch, plot: str, records: list[dict]) -> Figure:
    """The picture of the rows VQ 16 and VQ 32, made of `records`."""
    sweep_file.write_text(SWEEP.replace("{kind: rows, x: K, line: quantizer, metrics: [usage/epoch]}", plot))
    grid, figures = load_grid(sweep_file, "quick"), []
    runs = [row.runs[0].digest for row in grid.tables[0].rows[1:]]
    monkeypatch.setattr(plots, "replace_file", lambda path, figure: figures.append(figure))
    path = sweep_file.parent / "plot.png"
    assert write_plot(grid.tables[0], dict(zip(runs, records, strict=False)), "cifar10-export", "quick", path) == path
    return figures[0]


def test_a_plot_over_epochs_draws_each_history(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories = [[10.0, 20.0, 30.0], [5.0, 5.0]]
    records = [record(METRICS) | {"history": {"usage/epoch": history}} for history in histories]
    figure = figure_of(sweep_file, monkeypatch, "{kind: history, x: training epoch, metrics: [usage/epoch]}", records)
    (axes,) = figure.axes
    assert [list(line.get_ydata()) for line in axes.lines] == histories
    assert list(axes.lines[0].get_xdata()) == [1, 2, 3] and axes.get_xlabel() == "training epoch"
    assert [line.get_label() for line in axes.lines] == ["VQ, K 16", "VQ, K 32"]


def test_a_plot_across_columns_draws_a_line_a_row(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [record(METRICS), record({"usage/epoch": 7.0})]
    figure = figure_of(sweep_file, monkeypatch, "{kind: columns, metrics: [usage/epoch, ssim]}", records)
    (axes,) = figure.axes
    assert axes.get_title() == "Quantizers & codes"
    drawn = {c.get_label(): list(c.lines[0].get_ydata()) for c in axes.containers}
    assert drawn == {"VQ, K 16": [80.25, 50.0], "VQ, K 32": [7.0]}
    assert [text.get_text() for text in axes.get_xticklabels()] == ["util %", "SSIM %"]


def test_speed_and_size_are_columns_too(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP.replace("{metric: psnr, head: PSNR}", "{metric: images_per_second, head: images/s}"))
    grid = load_grid(sweep_file, "quick")
    found = {grid.runs[0].digest: record(METRICS) | {"images_per_second": 12.0, "device": "cpu"}}
    sheet, _ = sheet_of(grid, found)
    assert sheet.body[0][-1] == "12.00" and "images/s: training/cpu" in " ".join(sheet.notes)


@pytest.mark.parametrize(
    ("precision", "devices", "usage"),
    [
        ("bf16-mixed", ["cuda:0", "cpu"], "85.2 ± 7.1"),  # the same products everywhere
        ("32-true", ["cuda:0", "cuda:1"], "85.2 ± 7.1"),
        ("32-true", ["cuda:0", "cpu"], "80.2"),  # TF32 and float32
    ],
)
def test_seeds_of_two_devices_share_a_mean_where_they_compute_alike(
    sweep_file: Path, precision: str, devices: list[str], usage: str
) -> None:
    grid = load_grid(sweep_file, "quick", "0,1")
    config = {"config": {"trainer": {"precision": precision}}}
    found = {
        run.digest: record({"usage/epoch": value}) | {"device": device} | config
        for run, value, device in zip(grid.tables[0].rows[1].runs, [80.25, 90.25], devices, strict=True)
    }
    sheet, _ = sheet_of(grid, found)
    assert sheet.body[0][3] == usage


def test_speed_is_of_one_device_that_no_other_run_shared(sweep_file: Path) -> None:
    sweep_file.write_text(SWEEP.replace("{metric: psnr, head: PSNR}", "{metric: images_per_second, head: images/s}"))
    grid = load_grid(sweep_file, "quick", "0,1,2,3")
    config = {"config": {"trainer": {"precision": "bf16-mixed"}}}
    seeds = [(900.0, "cuda:0", 1), (12.0, "cpu", 1), (14.0, "cpu", 1), (5.0, "cpu", 2)]
    found = {
        run.digest: record(METRICS) | {"images_per_second": speed, "device": device, "num_concurrent": num} | config
        for run, (speed, device, num) in zip(grid.tables[0].rows[1].runs, seeds, strict=True)
    }
    sheet, _ = sheet_of(grid, found)
    assert sheet.body[0][-1].startswith("13.00 ± 1.41")


def test_what_a_column_would_need_is_in_the_caption(sweep_file: Path) -> None:
    sweep_file.write_text(
        SWEEP.replace("{metric: psnr, head: PSNR}", "{metric: fid, head: LDM FID, needs: a diffusion model}")
    )
    grid = load_grid(sweep_file, "quick")
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record(METRICS)})
    assert "Not measured: LDM FID (needs a diffusion model)." in sheet.notes


def test_several_sweeps_at_once(sweep_file: Path, capsys: pytest.CaptureFixture) -> None:
    """One without records is named, and does not keep the other from being rendered."""
    other = sweep_file.with_name("other.yaml")
    other.write_text(SWEEP.replace("model.codebook_size: ", "model.code_dim: "))
    run = load_grid(sweep_file, "quick").runs[0]
    out = sweep_file.parent / "runs"
    path = record_path(out / "records", run.experiment, "cifar10-export")
    write_json(path, record(METRICS) | {"format": 1, "config": run.experiment.identity(), "data_id": "cifar10-export"})
    assert table_module.main([str(other), str(sweep_file), "--output-dir", str(out)]) == 0
    printed = capsys.readouterr()
    assert "80.2" in printed.out and f"{other}: no cell is finished" in printed.err


def test_more_seeds_than_the_scale_asks_for_count_where_they_are_finished(
    sweep_file: Path, capsys: pytest.CaptureFixture
) -> None:
    """As in the verdicts, and no row lacks them; named seeds are these alone."""
    out = sweep_file.parent / "runs"
    first, fifth = (load_grid(sweep_file, "quick", seeds).runs[0] for seeds in ("0,", "4,"))
    for run, usage in ((first, 80.25), (fifth, 90.25)):
        content = {"format": 1, "config": run.experiment.identity(), "data_id": "cifar10-export"}
        path = record_path(out / "records", run.experiment, "cifar10-export")
        write_json(path, content | record(METRICS | {"usage/epoch": usage}))
    for seeds, shown in (([], "85.2 ± 7.1"), (["--seeds", "0,"], "80.2"), (["--seeds", "4,"], "90.2")):
        assert table_module.main([str(sweep_file), "--output-dir", str(out), *seeds]) == 0
        printed = capsys.readouterr().out
        (row,) = (line for line in printed.splitlines() if line.split()[:2] == ["VQ", "16"])
        assert shown in row and ("±" in row) == ("±" in shown)
        caption = " ".join(printed.split())
        assert f"2 of {3 if seeds else 4} runs are missing" in caption
        assert f"seed{f' {seeds[1][0]}' if seeds else 's 0, 4'}." in caption


def test_ticks_that_would_overlap_are_one() -> None:
    assert is_near(1000, 1024) and is_near(16384, 15360)
    assert not is_near(1024, 16384) and not is_near(50_000, 100_000)


def test_files_are_written_for_each_data_set_apart(sweep_file: Path, capsys: pytest.CaptureFixture) -> None:
    grid = load_grid(sweep_file, "quick")
    out = sweep_file.parent / "runs"
    for data_id, usage in (("cifar10-export", 11.0), ("cifar10-binary", 22.0)):
        for run in grid.runs[:2]:
            content = {"format": 1, "config": run.experiment.identity(), "data_id": data_id}
            content |= record(METRICS | {"usage/epoch": usage})
            write_json(record_path(out / "records", run.experiment, data_id), content)
    assert table_module.main([str(sweep_file), "--output-dir", str(out), "--dry-run"]) == 0
    said = f"would be written: {out}/tables/sweep_quick_cifar10-export.*, from 2 of 3 cells\n"
    assert said in capsys.readouterr().out and not (out / "tables").exists()
    assert table_module.main([str(sweep_file), "--output-dir", str(out)]) == 0
    names = {path.name for path in (out / "tables").iterdir()}
    assert names == {
        f"sweep_quick_{data_id}{end}"
        for data_id in ("cifar10-export", "cifar10-binary")
        for end in (".md", ".tex", ".png", "_plot.png")
    }
    export = (out / "tables" / "sweep_quick_cifar10-export.md").read_text()
    assert "11.0" in export and "22.0" not in export and "cifar10-binary" not in export
    assert (out / "tables" / "sweep_quick_cifar10-export.png").read_bytes().startswith(b"\x89PNG")
    assert "1 of 3 runs are missing" in " ".join(capsys.readouterr().out.split())


def test_the_number_of_one_data_set_is_not_in_the_row_of_another(sweep_file: Path) -> None:
    """Their experiments differ in the name of the data set alone."""
    for name, dataset in (("imagenet", ""), ("ffhq", "ffhq")):
        text = f"model: {{name: vqgan}}\ndata: {{name: image_folder, dataset: '{dataset}'}}\n"
        (sweep_file.parent / f"vqgan_{name}.yaml").write_text(text)
    other = "quantizer: VQ, K: 32}, set: {model.codebook_size: 32}"
    sweep_file.write_text(
        SWEEP.replace(other, "quantizer: faces, K: 16}, dataset: ffhq, set: {model.codebook_size: 16}")
    )
    first, faces, _ = load_grid(sweep_file, "paper").runs
    assert first.experiment.differences(faces.experiment.identity()) == ["data.dataset=ffhq, here "]
    out = sweep_file.parent / "runs"
    for run, usage in ((first, 11.0), (faces, 22.0)):
        data_id = f"image_folder-000000{usage:.0f}"
        content = {"format": 1, "config": run.experiment.identity(), "data_id": data_id}
        path = record_path(out / "records", run.experiment, data_id)
        write_json(path, content | record(METRICS | {"usage/epoch": usage}))
    assert table_module.main([str(sweep_file), "--scale", "paper", "--output-dir", str(out)]) == 0
    texts = [path.read_text() for path in sorted((out / "tables").glob("*.md"))]
    rows = [[line.split("|")[4].strip() for line in text.splitlines() if " 16 |" in line] for text in texts]
    assert rows == [["11.0", ""], ["", "22.0"]]


def test_a_table_names_the_data_without_their_fingerprint_unless_it_must(
    sweep_file: Path, capsys: pytest.CaptureFixture
) -> None:
    grid, out = load_grid(sweep_file, "quick"), sweep_file.parent / "runs"
    for data_id, is_shared in (("cifar10-export-0123abcd", False), ("cifar10-export-99999999", True)):
        content = {"format": 1, "config": grid.runs[0].experiment.identity(), "data_id": data_id} | record(METRICS)
        write_json(record_path(out / "records", grid.runs[0].experiment, data_id), content)
        assert table_module.main([str(sweep_file), "--output-dir", str(out), "--out", str(out / data_id)]) == 0
        names = {path.stem.removeprefix("sweep_quick_") for path in (out / data_id).glob("*.md")}
        expected = {"cifar10-export-0123abcd", "cifar10-export-99999999"} if is_shared else {"cifar10-export"}
        assert names == expected
        for name in names:
            assert f"Ours: {name} at " in (out / data_id / f"sweep_quick_{name}.md").read_text()


def test_rows_of_other_data_are_not_missing(sweep_file: Path) -> None:
    grid = load_grid(sweep_file, "quick")
    first, second, third = (run.digest for run in grid.runs)
    by_data = {
        "image_folder": {first: record(METRICS)},
        "image_folder-ffhq": {second: record(METRICS)},
        "image_folder-celebahq": {first: record(METRICS)},  # in both: nothing to say about an empty cell
    }
    other = "1 of 3 runs are of other data (image_folder-ffhq) and stand in a table of their own"
    text = " ".join(make_sheet(grid, grid.tables[0], by_data, "image_folder")[0].notes)
    assert other in text and "1 of 3 runs are missing; their cells are empty." in text

    by_data["image_folder-ffhq"][third] = record(METRICS)
    text = " ".join(make_sheet(grid, grid.tables[0], by_data, "image_folder")[0].notes)
    assert other.replace("1", "2", 1) in text and "missing" not in text
    text = " ".join(make_sheet(grid, grid.tables[0], by_data, "image_folder-ffhq")[0].notes)
    assert "(image_folder, image_folder-celebahq)" in text and "missing" not in text


def test_no_records_is_a_clear_error(sweep_file: Path, capsys: pytest.CaptureFixture) -> None:
    assert table_module.main([str(sweep_file), "--output-dir", str(sweep_file.parent / "none")]) == 1
    assert "no cell is finished at scale quick" in capsys.readouterr().err


def test_a_failed_write_leaves_the_old_table(sweep_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = load_grid(sweep_file, "quick")
    sheet, _ = sheet_of(grid, {grid.runs[0].digest: record(METRICS)})
    stem = sweep_file.parent / "out" / "t"
    write_sheet(sheet, stem)
    before = stem.with_suffix(".md").read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError):
        write_sheet(sheet, stem)
    assert stem.with_suffix(".md").read_bytes() == before
    assert sorted(path.name for path in stem.parent.iterdir()) == ["t.md", "t.png", "t.tex"]


@pytest.mark.parametrize("name", ["vit_vqgan/table2", "vqgan_lc/table8"])
def test_counted_tables_have_the_papers_numbers_and_dimensions(name: str) -> None:
    """Those that `preview` holds a recipe against, and those of the networks."""
    (table,) = load_grid(SWEEPS / f"{name}.yaml", "quick").tables
    scales = {column.metric: column.scale for column in table.spec.columns}
    for row in table.rows:
        (run,) = row.runs
        printed = {count.quantity: count.value for count in paper_counts(run.experiment)}
        for metric, value in row.cell.paper.items():
            assert value == pytest.approx(printed[row.cell.use.get(metric, metric)] * scales[metric])
        if "MLP width" in row.heads:
            model = run.experiment.model
            dims = model.gpt.dims or GPT_SIZES[model.gpt.size] if "VIM" in run.label else model.backbone.size("encoder")
            assert list(row.heads.values())[2:] == list(dims)


def test_sizes_of_paper_a() -> None:
    """Blocks of Small: 8 x (4 x 512^2 attention + 2 x 512 x 2048 MLP) weights, biases and norms."""
    counts = counted(load_grid(SWEEPS / "vit_vqgan/table2.yaml", "quick").runs[0].experiment)["metrics"]
    weights = 8 * (4 * 512**2 + 2 * 512 * 2048)
    assert weights < counts["blocks parameters"] < 1.01 * weights
    assert counts["blocks parameters"] < counts["encoder parameters"] < counts["both sides"]


@pytest.mark.parametrize("command", [table_module.main, run_main])
def test_costs_of_paper_b(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: Callable[[list[str]], int]
) -> None:
    """The larger row is the paper's to the digit once the products inside attention are left out, as counters do.

    At any scale and on any data, which are not looked for.
    """
    path = str(SWEEPS / "vqgan_lc/table8.yaml")
    assert command([path, "--output-dir", str(tmp_path), "--data-dir", "nowhere"]) == 0
    out = capsys.readouterr().out
    row = next(line for line in out.splitlines() if line.startswith("100,000"))
    assert " ".join(row.split()) == "100,000 195.70 196.17 +0.47 195.70 0.61 0.20 71.72 71.76 +0.04 76.8"
    names = {f"vqgan_lc_table8.{suffix}" for suffix in ("md", "tex", "png")}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
