"""The report of published records."""

import re
from pathlib import Path

import pytest

import sweeps.report_page
from sweeps.report import main


def test_published_tables_and_claims_on_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.report_page, "SCALES", ["cifar"])
    words = ["sweeps/vqgan_lc/table1.yaml", "sweeps/vit_vqgan/table2.yaml", "--scale", "cifar"]
    words += ["--output-dir", str(tmp_path)]
    assert main([*words, "--dry-run"]) == 0 and not (tmp_path / "report.html").exists()
    assert capsys.readouterr().out == f"would be written: {tmp_path}/report.html, the claims and 2 tables\n"
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path}/report.html\n"
    text = (tmp_path / "report.html").read_text()
    heads = re.findall("<h2>(.*?)</h2>", text)
    assert heads[0] == "What holds of both papers&#39; conclusions" and len(heads) == 3
    assert re.search(r">B2</td><td[^>]*>\s*B-T2</td>", text.replace("\n", ""))
    assert "rfid/efficientnet-lite2@64px" in text and text.count('src="data:image/png') == 1
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_without_a_record_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweeps/vit_vqgan/table7.yaml", "--scale", "cifar", "--output-dir", str(tmp_path)])
    assert "error: no cell of these sweeps is finished at scale cifar" in capsys.readouterr().err
