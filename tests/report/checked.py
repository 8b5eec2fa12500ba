"""Reports that are built are held to their schema, whatever is in them."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from opensora_launch.report.build import build_report, summary_lines

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text()))


def build(run: Path, **options: Any) -> dict[str, Any]:
    """The report, which is what its file says, is of the schema and adds up."""
    report = build_report(run, **options)
    check(run, report)
    return report


def check(run: Path, report: dict[str, Any]) -> None:
    assert json.loads((run / "report.json").read_text()) == report
    assert [f"{e.json_path}: {e.message}" for e in VALIDATOR.iter_errors(report)] == []
    for rank in (r for a in report["attempts"] for r in a["ranks"]):
        assert sum(rank["parts"].values()) == pytest.approx(rank["wall_s"], rel=0.01)
        assert sum(rank["communication_by_axis"].values()) == pytest.approx(rank["parts"]["communication"], abs=1e-4)
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    lines = summary_lines(report)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
