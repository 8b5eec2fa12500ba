"""Sweeps: what each series is compared with, what is left out, and the schema in docs/."""

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from opensora_launch.report.build import build_sweep
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.report.wording import message, say
from tests.report.sweeps import VALIDATOR, read_sweep_report


def point(gpus: int, seconds: float, series: str = "x", **work: Any) -> SweepPoint:
    works = ({"num_steps": 50, "videos": 1} | work,) * 2
    return SweepPoint(series, gpus, (seconds, seconds), None, f"{series}{gpus}", works=works)


def made(folder: Path, *points: SweepPoint, weak: bool = False) -> dict[str, Any]:
    build_sweep(folder, sweep_report("s", points, version="0", weak=weak))
    return read_sweep_report(folder)


def test_a_point_of_other_work_is_in_no_line_and_no_fit(tmp_path: Path) -> None:
    """The others take 1 + 8 / n seconds, and the fit finds that."""
    report = made(tmp_path, point(1, 9.0), point(2, 5.0), point(4, 1.0, num_steps=5), point(8, 2.0))
    assert [r["efficiency"] for r in report["table"]] == [1.0, 0.9, None, 0.5625]
    (fit,) = report["amdahl"]
    assert (fit["serial_s"], fit["parallel_s"]) == pytest.approx((1.0, 8.0))
    assert [p["gpus"] for p in report["curve"][0]["points"]] == [1, 2, 8]
    assert [say(line) for line in report["unknown"]] == [
        "x on 4 GPUs did other work: num_steps: 5 here, 50 in the baseline."
    ]


def test_each_series_names_its_baseline(tmp_path: Path) -> None:
    report = made(tmp_path, point(2, 5.0), point(1, 9.0), point(4, 3.0, "y"), point(8, 2.0, "y"))
    bases = [(b["name"], b["kind"], b["gpus"], b["seconds"], b["source"]) for b in report["baselines"]]
    assert bases == [("x", "measured", 1, 9.0, "x1"), ("y", "measured", 4, 3.0, "y4")]
    assert "- y: the baseline is 4 GPUs, 3.00 s, measured here, run y4\n" in (tmp_path / "report.md").read_text()


def test_weak_scaling_makes_more_videos_but_no_other_work(tmp_path: Path) -> None:
    more = made(tmp_path, point(1, 4.0), point(2, 5.0, videos=2), point(4, 5.0, videos=4, num_steps=5), weak=True)
    assert [r["efficiency"] for r in more["table"]] == [1.0, 0.8, None]
    assert more["table"][2]["other_work"] == [message("difference", key="num_steps", here="5", baseline="50")]
    strong = made(tmp_path, point(1, 4.0), point(2, 5.0, videos=2))
    assert strong["table"][1]["other_work"] == [message("difference", key="videos", here="2", baseline="1")]


def test_the_schema_refuses_what_is_not_a_sweep(tmp_path: Path) -> None:
    Draft202012Validator.check_schema(VALIDATOR.schema)
    report = made(tmp_path, point(1, 9.0), point(2, 5.0, num_steps=5))
    changes: list[dict[str, Any]] = [
        {"schema": 2},
        {"kind": "run"},
        {"new": 1},
        {"baselines": []},
        {"baselines": [report["baselines"][0] | {"kind": "guessed"}]},
        {"table": [report["table"][0] | {"efficiency": "1"}]},
        {"table": [report["table"][1] | {"efficiency": 0.9}]},
    ]
    for change in changes:
        assert not VALIDATOR.is_valid(report | change), change
