"""The table of `make bench`: what a benchmark prints, as `timing.report` prints it, becomes a row."""

import pytest

from benchmarks import collect
from benchmarks.timing import Side, report


def test_what_is_printed_becomes_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report("search_vs_dense_d8", Side("nearest_code (ours)", [0.1, 0.2, 0.3], 3 * 2**20), Side("dense formula", [1.0]))
    print("codes that differ: 0 of 8192\nsearch_vs_dense_d8 5")
    print("2 process(es) x 1 thread(s)      median     80.1 images/s, min 72.5, max 81.3\nddp 0.8")
    rows = collect.parse(capsys.readouterr().out)
    assert [(row.name, row.ratio) for row in rows] == [("search_vs_dense_d8", 5.0), ("ddp", 0.8)]
    assert rows[0].sides == [("dense formula", "1,000.0 ms", "-"), ("nearest_code (ours)", "200.0 ms", "3 MiB")]
    assert rows[1].sides == [("2 process(es) x 1 thread(s)", "80.1 images/s", "-")]
    table = collect.table({"search": (rows[:1], True), "ddp": (rows[1:], False)}, "a machine")
    assert (
        "Machine: a machine." in table and "| `search_vs_dense_d8` | 5 | > 1 | yes | dense formula: 1,000.0 ms" in table
    )
    assert "| `ddp` | 0.8 | >= 0.85 | **no** |" in table and "| `ddp` | failed |" in table
