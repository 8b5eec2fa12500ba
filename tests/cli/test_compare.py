"""compare: two runs or sweeps side by side, and what it exits with."""

import json
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main
from opensora_launch.report.build import build_sweep
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.report.wording import say
from opensora_launch.schema.config import Offload, Precision
from opensora_launch.schema.kernel_kinds import AttentionKind
from tests.cli.runs import made_run
from tests.report.browser import browser
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


def embedded(page: Path) -> dict[str, Any]:
    text = page.read_text()
    found: dict[str, Any] = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    return found


def test_runs_are_compared_on_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report alone has no events: then only its timeline is missing."""
    a, b = made_run(tmp_path, "a", 2), made_run(tmp_path, "b", 4, 1.2)
    alone = tmp_path / "kept" / "a.json"
    alone.parent.mkdir()
    alone.write_bytes((a / "report.json").read_bytes())
    out = tmp_path / "new" / "page.html"
    assert main(["compare", str(alone), str(b), "--html", str(out)]) == 0
    assert capsys.readouterr().out.endswith(f"page: {out}\n")
    data = embedded(out)
    assert (data["names"], data["paths"]) == (["a", "b"], [str(alone), str(b)])
    assert {s["key"]: (s["a"], s["b"]) for s in data["settings"]}["topology"] == ("1 x 2", "1 x 4")
    assert data["timelines"][0] is None
    assert len(data["timelines"][1]["ranks"]) == 4
    assert [(say(c["name"]), c["slower"]) for c in data["changes"][:2]] == [("whole job", False), ("denoising", False)]
    assert main(["compare", str(a), str(b), "--html", str(out)]) == 0
    first, second = embedded(out)["timelines"]
    assert first["wall_s"] == second["wall_s"] == pytest.approx(24.75)
    assert main(["compare", str(a), str(b), "--html", str(tmp_path)]) == 2
    assert f"error: --html {tmp_path} is a folder; give a file" in capsys.readouterr().err


@pytest.mark.browser
def test_the_page_of_a_comparison_names_both(tmp_path: Path) -> None:
    a, b = made_run(tmp_path, "one", 2), made_run(tmp_path, "two", 2, 1.5)
    sweeps = sweep_of(tmp_path / "s", (10.0, 10.2)), sweep_of(tmp_path / "t", (12.0, 12.1))
    assert main(["compare", str(a), str(b), "--html", str(tmp_path / "runs.html")]) == 1
    assert main(["compare", *map(str, sweeps), "--html", str(tmp_path / "sweeps.html")]) == 1
    with browser(tmp_path) as page:
        for width, language in ((1024, "en"), (390, "ko")):
            page.open(tmp_path / "runs.html", width=width, language=language)
            assert page.run("[...document.querySelectorAll('#timeline h3')].map((e) => e.textContent)")[0] == "A: one"
            assert page.run("document.querySelectorAll('#timeline canvas').length") >= 2
            assert page.run("document.querySelector('main .note').className") == "note warn"
        page.open(tmp_path / "sweeps.html")
        assert page.run("document.querySelector('#deltas td:last-child').textContent") == "slower"
        assert page.errors == []
