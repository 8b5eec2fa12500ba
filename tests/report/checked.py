"""Reports that are built are held to their schema, whatever is in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from opensora_launch.report.build import build_report
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.wording import LANGUAGES, say, templates

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"
VALIDATOR = Draft202012Validator(json.loads(SCHEMA.read_text()))


def messages_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every message of a report, at any depth."""
    if isinstance(value, dict):
        if "code" in value:
            yield value
        for inner in value.values():
            yield from messages_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from messages_in(inner)


def unworded(found: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the words of a message, in each language and variant."""
    for language in LANGUAGES:
        table, code = templates(language), found["code"]
        variants = [key.partition(".")[2] for key in table if key == code or key.startswith(f"{code}.")]
        if not variants:
            yield f"{code} has no words in {language}"
        for variant in variants:
            said = say(found, variant, language)
            if not said or set("{}[]") & set(said) or "None" in said:
                yield f"{code}.{variant} in {language}: {said!r}"


def build(run: Path, **options: Any) -> dict[str, Any]:
    """The report, which is what its file says, is of the schema and adds up."""
    report = build_report(run, **options)
    check(run, report)
    return report


def check(run: Path, report: dict[str, Any]) -> None:
    assert json.loads((run / "report.json").read_text()) == report
    assert [f"{e.json_path}: {e.message}" for e in VALIDATOR.iter_errors(report)] == []
    assert [problem for found in messages_in(report) for problem in unworded(found)] == []
    for rank in (r for a in report["attempts"] for r in a["ranks"]):
        assert sum(rank["parts"].values()) == pytest.approx(rank["wall_s"], rel=0.01)
        assert sum(rank["communication_by_axis"].values()) == pytest.approx(rank["parts"]["communication"], abs=1e-4)
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    lines = summary_lines(report)
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
