"""compare: two runs or sweeps side by side, and what it exits with."""

from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main
from opensora_launch.report.build import build_sweep
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.schema.config import AttentionKind, Offload, Precision
from tests.cli.runs import made_run
from tests.report.sweeps import read_sweep_report


@pytest.mark.parametrize(("scale", "threshold", "code"), [(1.0, "5", 0), (1.2, "5", 1), (1.2, "30", 0), (0.5, "5", 0)])
def test_compare_fails_for_a_slower_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: float, threshold: str, code: int
) -> None:
    a, b = made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 2, scale)
    assert main(["compare", str(a), str(b), "--threshold", threshold]) == code
    out = capsys.readouterr().out
    assert ("<- slower" in out) == (code == 1)
    assert "note: one run each: the spread of their times is unknown" in out


def sweep_of(folder: Path, seconds: tuple[float, ...], steps: int = 6, *, weak: bool = False) -> Path:
    folder.mkdir()
    points = [SweepPoint("x", 2, seconds, None, "r", works=({"num_steps": steps},) * len(seconds))]
    build_sweep(folder, sweep_report("s", points, version="0", weak=weak))
    read_sweep_report(folder)
    return folder


def test_compare_of_sweeps_minds_the_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = sweep_of(tmp_path / "a", (10.0, 10.2, 12.0))
    within = sweep_of(tmp_path / "b", (11.0, 11.5, 11.9))
    beyond = sweep_of(tmp_path / "c", (12.5, 12.6, 12.7))
    assert main(["compare", str(a), str(within)]) == 0
    assert main(["compare", str(a), str(beyond)]) == 1
    assert main(["compare", str(beyond), str(a)]) == 0
    assert "beyond the spread" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"sampling__num_steps": 12}, "num_steps: 50 in A, 12 in B"),
        ({"placement__offload": Offload.host}, "placement.offload: none in A, host in B"),
        ({"precision": Precision.bf16}, "precision: fp32 in A, bf16 in B"),
        ({"attention": AttentionKind.reference}, "attention: auto in A, reference in B"),
    ],
)
def test_runs_that_did_other_work_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], line: str
) -> None:
    """Though B took half the time: it did other work."""
    a, b = made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 2, 0.5, video__num_frames=33, **change)
    assert main(["compare", str(a), str(b)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "error: A and B did different work; compare equal work" in shown.err
    assert f"  - {line}\n" in shown.err
    assert "  - num_frames: 129 in A, 33 in B\n" in shown.err


def test_the_same_work_on_another_count_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = made_run(tmp_path, "a", 1), made_run(tmp_path, "b", 2)
    assert main(["compare", str(a), str(b)]) == 0
    assert main(["compare", str(b), str(a)]) == 1
    (line, _) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("whole job")]
    assert line.split()[2:] == ["43.000", "s", "24.750", "s", "0.576"]


def test_sweeps_that_did_other_work_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They have the same name, count and layout."""
    a, b = sweep_of(tmp_path / "a", (10.0, 10.1)), sweep_of(tmp_path / "b", (5.0, 5.1), steps=12)
    weak = sweep_of(tmp_path / "weak", (5.0, 5.1), weak=True)
    assert main(["compare", str(a), str(b)]) == 2
    assert "  - x, 2 GPUs: num_steps: 6 in A, 12 in B\n" in capsys.readouterr().err
    assert main(["compare", str(a), str(weak)]) == 2
    assert "  - scaling: strong in A, weak in B\n" in capsys.readouterr().err
    assert main(["compare", str(a), str(a)]) == 0
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize("said", ["nan", "inf", "-1", "x"])
def test_a_gate_that_nothing_can_fail_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], said: str) -> None:
    a = sweep_of(tmp_path / "a", (10.0,))
    assert main(["compare", str(a), str(a), "--threshold", said]) == 2
    assert f"--threshold {said} must be a percentage of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1", "has no report (JSONDecodeError"),
        ("[]", "has no report (TypeError"),
        ('{"schema": 3, "times": {}, "work": {}}', "is not what this version writes (KeyError"),
        ('{"schema": 3, "table": [1], "scaling": "weak"}', "is not what this version writes (TypeError"),
        ('{"schema": 2, "table": []}', "has schema 2, which this version does not read"),
    ],
)
def test_a_broken_report_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_compare_refuses_what_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, s = made_run(tmp_path, "a", 2), sweep_of(tmp_path / "s", (1.0,))
    assert main(["compare", str(a), str(s)]) == 2
    assert main(["compare", str(a)]) == 2
    assert main(["compare", str(a), str(tmp_path / "none")]) == 2
    assert "compare two of a kind" in capsys.readouterr().err
