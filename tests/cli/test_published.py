"""`report FILE.json`: the report of published figures."""

from pathlib import Path

import pytest

from opensora_launch.cli import main
from tests.report.sweeps import ROOT, read_sweep_report


def test_open_soras_published_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1656 s on one H100: 95.9%, 88.8% and 75.0% on 2, 4 and 8."""
    file, made = ROOT / "docs/benchmarks/published_scaling.json", tmp_path / "made"
    assert main(["report", str(file), "--out", str(made)]) == 0
    names = [f"published_scaling-report.{end}" for end in ("csv", "html", "json", "md")]
    assert sorted(p.name for p in made.iterdir()) == names
    rows = [line.split("|") for line in (made / names[-1]).read_text().splitlines()]
    found = {row[2].strip(): row[7].strip() for row in rows if row[1:] and row[1].strip() == "opensora2-11b-768px-h100"}
    assert found == {"1": "100.0%", "2": "95.9%", "4": "88.8%", "8": "75.0%"}
    report = read_sweep_report(made, "published_scaling-report")
    assert report["kind"] == "published"
    assert f"report: {made / 'published_scaling-report.html'}" in capsys.readouterr().out


def test_what_is_no_file_of_published_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.json"
    file.write_text("[1]")
    assert main(["report", str(file)]) == 2
    assert f"{file} is not a file of published figures: TypeError" in capsys.readouterr().err
