"""Reports of sweeps, held to the schema in docs/."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from tests.report.checked import messages_in, unworded

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(json.loads((ROOT / "docs" / "sweep.schema.json").read_text()))


def read_sweep_report(folder: Path, name: str = "report") -> dict[str, Any]:
    """What the file says, which is of the schema."""
    report: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    assert [e.message for e in VALIDATOR.iter_errors(report)] == []
    assert [problem for found in messages_in(report) for problem in unworded(found)] == []
    return report
