"""The benchmarks of a GPU run, at sizes that a CPU takes; their numbers mean nothing here."""

import re

import pytest

from benchmarks import gpu

BAR = re.compile(r"^(gpu_\w+) [\d.e+-]+ \(bar: at (?:least|most) [\d.]+, (?:met|MISSED)\)$", re.M)


def test_each_prints_its_bars(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu, "VARIANTS", {name: gpu.VARIANTS[name] for name in ("float32, eager", "bf16, eager")})
    assert gpu.main(["--device=cpu", "--tiny", "--only", "search", "step", "vit"]) == 0
    search = [f"gpu_search_{name}" for name in ("vs_tiled", "vs_cdist", "extra_mib")]
    assert BAR.findall(capsys.readouterr().out) == [*search, "gpu_recipe_step_lc", "gpu_vit_base_share"]


def test_the_rest_goes_on_after_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(bench: gpu.Bench) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(gpu.BENCHMARKS, "step", broken)
    assert gpu.main(["--device=cpu", "--tiny", "--only", "step", "search"]) == 1
    shown = capsys.readouterr().out
    assert "no such kernel" in shown and "gpu_search_vs_tiled" in shown
