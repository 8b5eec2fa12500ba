"""`list`, `open` and `latest`: the runs of a folder, whoever works on them or has worked on them."""

import json
import os
import time
import webbrowser
from dataclasses import asdict
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.cli.view import clock
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.newest import named_report, named_run, named_sweep
from opensora_launch.runs.state import Launched, record_launch
from opensora_launch.telemetry.failure import Failure, record_failure
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import made_run
from tests.samples import finish_video


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake one; it counts how often it is asked."""
    path = tmp_path / "bin/squeue"
    path.parent.mkdir()
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    jobs = "1|PENDING||Priority|N/A\\n2_0|RUNNING|n1|None|x\\n2_1|COMPLETED|n2|None|x\\n3|SUSPENDED|n1|None|x\\n"
    path.write_text(f"#!/bin/sh\necho \"$@\" >>{tmp_path}/asked\nprintf '{jobs}4|FAILED|n1|NonZeroExitCode|x\\n'\n")
    path.chmod(0o755)
    return path


def a_run(name: str, job: str = "", state: str = "", age_s: float = 0.0) -> AttemptDir:
    """A run of two videos, one of them made, whose rank wrote its last heartbeat elsewhere; or never began."""
    attempt = prepare_attempt(["--prompt", "a", "--prompt", "b", "model=tiny", "runs_dir=all"], Machine("cpu", 1, 1, 1))
    run = attempt.run.path.rename(attempt.run.path.with_name(name))
    attempt = AttemptDir(run / "attempts/0")
    if job:
        record_launch(attempt, Launched("slurm", job=job))
    if state:
        finish_video(run, "0000_0")
        beat = Beat(0, "n1", 1, time.time() - age_s, state, "denoise", "0001_0", 2, 6, 1, 2)
        attempt.heartbeat(0).write_text(json.dumps(asdict(beat)))
    return attempt


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    """The name, state, videos and job of each run."""
    assert main(["list", "all"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "state", "videos", "begun", "took", "job"]  # no run has an efficiency
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {name: [*cells[:2], cells[-1]] for name, *cells in rows}


def test_a_line_for_each_run(squeue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_run("01", "1")
    a_run("02", "2_0", "running")
    a_run("03", "3", "running", 9_999)
    a_run("04", "4")
    a_run("05", "99", "preempted")
    failed = a_run("06", "", "failed")
    record_failure(failed, Failure(0, "n1", "failure", "no"))
    record_launch(a_run("07", "", "running", 9_999), Launched("srun", "n9", 1, 1, allocation="12", step="x"))
    finish_video(a_run("08", "98", "done").run.path, "0001_0")
    a_run("09", "", "done")
    a_run("bench-1").run.path.rename(tmp_path / "all/01/inner")
    assert listed(capsys) == {
        "01": ["pending", "0 of 2", "1"],
        "01/inner": ["not started", "0 of 2", "-"],
        "02": ["running", "1 of 2", "2"],
        "03": ["suspended by Slurm", "1 of 2", "3"],
        "04": ["failed", "0 of 2", "4"],
        "05": ["preempted", "1 of 2", "99"],
        "06": ["failed", "1 of 2", "-"],
        "07": ["stopped without a report", "1 of 2", "12"],
        "08": ["done", "2 of 2", "98"],
        "09": ["incomplete", "1 of 2", "-"],
    }
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert "--jobs=1,2,3,4,99,98 " in asked


def test_a_slurm_that_is_silent_and_a_plan_that_cannot_be_read(
    squeue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    squeue.write_text("#!/bin/sh\necho 'slurm_load_jobs error: down' >&2; exit 1\n")
    a_run("01", "1")
    (a_run("02", "", "done").run.plan).write_text("{}")
    assert main(["list", "all"]) == 0
    said = capsys.readouterr()
    assert said.err == "Slurm cannot be asked (squeue: slurm_load_jobs error: down)\n"
    assert [line.split()[:3] for line in said.out.splitlines()[1:]] == [
        ["01", "unknown", "0"],
        ["02", "incomplete", "?"],
    ]


def test_how_long_a_run_without_a_report_took(capsys: pytest.CaptureFixture[str]) -> None:
    """Until its newest file, from its plan, which is written when it begins."""
    attempt = a_run("01", "", "running", 9_999)
    for path in (*attempt.run.path.rglob("*"), attempt.run.path):
        os.utime(path, (1e9, 1e9))
    os.utime(attempt.heartbeats, (1e9 + 3723, 1e9 + 3723))
    assert main(["list", "all"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(1e9))}  1:02:03" in line


def test_time_and_efficiency_are_those_of_the_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path / "all", "01", 2)
    report = json.loads((run / "report.json").read_text())
    assert main(["list", "all"]) == 0
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[-1] == f"{report['efficiency']['job']['efficiency']:.0%}"
    assert line[-2] == clock(report["attempts"][0]["wall_s"])


def test_what_is_no_folder_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}\n"
    assert main(["list"]) == 2
    assert "there is no folder runs: " in capsys.readouterr().err
    assert main(["list", "a", "b"]) == 2


@pytest.fixture
def two_runs(tmp_path: Path) -> list[Path]:
    """In runs/: an old run, and a newer one, whose name sorts before."""
    found = [made_run(tmp_path / "runs", name, 2) for name in ("2", "1")]
    os.utime(found[0] / "plan.json", (1e9, 1e9))
    return found


def test_latest_is_the_newest_run(two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "latest"]) == 0
    assert f"report: {Path('runs/1/report.html')}" in capsys.readouterr().out
    assert main(["compare", "runs/2", "runs/latest"]) == 0
    asked = a_run("0").run.path
    for words in (["status"], ["top", "--once"], ["cancel"]):
        assert main([*words, "all/latest"]) == 0
    out = capsys.readouterr().out
    assert f"run: {asked}" in out
    assert f"nothing works on {asked}" in out


def test_latest_includes_sweeps_where_they_have_a_report(two_runs: list[Path], tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "bench-1"
    new = made_run(sweep, "inner", 2)
    for name in ("sweep.json", "command.txt"):
        (sweep / name).touch()
    assert named_run("latest").absolute() == new
    assert named_report("latest").absolute() == sweep
    assert named_sweep("latest").absolute() == sweep


@pytest.mark.parametrize(
    "words", [["status"], ["top"], ["report"], ["cancel"], ["open"], ["bench", "--resume"], ["generate", "--resume"]]
)
def test_there_is_no_latest_run(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "latest"]) == 2
    err = capsys.readouterr().err
    what = "sweep" if words[0] == "bench" else "run"
    assert err == f"error: latest: there is no {what} in runs; name a {what}'s folder, or FOLDER/latest\n"


def test_open_shows_the_page(
    two_runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = list[str]()
    monkeypatch.setattr(webbrowser, "open", lambda address: seen.__iadd__([address]))
    assert main(["open"]) == 0
    assert main(["open", "runs/2"]) == 0
    pages = [run / "report.html" for run in reversed(two_runs)]
    assert seen == [page.as_uri() for page in pages]
    assert capsys.readouterr().out == "".join(f"report: {page}\n" for page in pages)
    monkeypatch.setattr(webbrowser, "open", lambda _: False)
    assert main(["open"]) == 0
    assert "no browser was found here" in capsys.readouterr().out
    pages[0].unlink()
    assert main(["open"]) == 2
    assert f"make it: opensora-launch report {two_runs[1]}" in capsys.readouterr().err
