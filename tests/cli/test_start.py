"""What a user sees while ranks run, and when they have ended."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main, prepare, start
from opensora_launch.cli.generate import by_hand
from opensora_launch.cli.progress import describe, fraction, progress
from opensora_launch.cli.start import failure_lines
from opensora_launch.config import LauncherKind
from opensora_launch.launch.supervise import Outcome
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.telemetry.failure import Failure
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.stall import Beat


def beat(phase: str = "denoise", **more: Any) -> Beat:
    given: dict[str, Any] = {
        "rank": 0,
        "host": "h",
        "pid": 1,
        "time_s": 1.0,
        "state": "running",
        "phase": phase,
        "videos": 4,
    }
    return Beat(**(given | more))


@pytest.mark.parametrize(
    ("at", "said", "part"),
    [
        (beat("load", videos=0), "load", (0.0, None)),
        (beat("text"), "text, video 1 of 4", (0.0, 4.0)),
        (beat(step=4, steps=5, videos_done=1), "denoise, video 2 of 4, step 5 of 5", (1.8, 4.0)),
        (beat("vae", videos_done=3), "vae, video 4 of 4", (3.0, 4.0)),
        (beat("save", videos_done=4), "finishing", (4.0, 4.0)),
        (beat(state="done"), "finishing", (0.0, 4.0)),
    ],
)
def test_progress_in_words_and_parts(at: Beat, said: str, part: tuple[float, float | None]) -> None:
    assert describe([at]) == said
    assert fraction(at) == part


def test_a_pipe_gets_a_line_for_each_phase(empty_folder: Path) -> None:
    with (empty_folder / "out").open("w") as stream, progress(stream) as show:
        show([])
        for at in (beat("text"), beat("text"), beat(step=0, steps=9), beat(step=1, steps=9), beat("vae")):
            show([at])
    assert (empty_folder / "out").read_text().splitlines() == [
        "text, video 1 of 4",
        "denoise, video 1 of 4, step 1 of 9",
        "vae, video 1 of 4",
    ]


def test_a_terminal_gets_a_bar_that_never_goes_back() -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream, progress(stream) as show:
        for at in (beat(step=3, steps=4, videos=1), beat("vae", videos=1)):
            show([at])
    data = b""
    while not data.endswith(b"\x1b[?25h"):  # the cursor is shown again
        data += os.read(ours, 4096)
    os.close(ours)
    text = data.decode()
    assert "step 4 of 4" in text
    last = [part for part in text.split("\r") if "vae, video 1 of 1" in part]
    assert last
    assert all("75%" in part for part in last)


@pytest.fixture
def attempt() -> Path:
    return prepare(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2))


def test_a_failure_names_rank_place_log_and_its_last_lines(attempt: Path) -> None:
    log = attempt / "logs" / "rank1.log"
    log.write_text("\n".join(f"line {i}" for i in range(50)))
    own = Failure(rank=1, host="h", kind="failure", message="ValueError: no", phase="vae", step=3, traceback="T")
    lines = list(failure_lines(own, attempt))
    assert lines[:2] == ["error: rank 1 on h failed in phase vae, step 3: ValueError: no", f"log: {log}"]
    assert lines[2:] == [f"  | line {i}" for i in range(38, 50)]
    log.unlink()
    (attempt / "logs" / "torchrun.log").write_text("No module named x\n")
    verdict = Failure(rank=1, host="h", kind="stalled", message="rank 1 (pid 7) has been silent", phase="vae")
    assert list(failure_lines(verdict, attempt)) == [
        "error: rank 1 (pid 7) has been silent",
        f"log: {attempt / 'logs' / 'torchrun.log'}",
        "  | No module named x",
    ]
    assert list(failure_lines(Failure(rank=0, host="h", kind="user", message="bad"), attempt)) == ["error: bad"]


def test_the_end_of_a_run_that_failed(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    for name in ("0000_0.mp4", "0000_0.json", "0001_0.mp4"):  # the second is not finished
        (run / "samples" / name).touch()
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    failure = Failure(rank=1, host="h", kind="failure", message="rank 1 was killed")
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(1, failure))
    assert start.start(LauncherKind.torchrun, plan, attempt, by_hand()) == 1
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(run / "samples" / "0000_0.mp4"), f"run: {run}"]
    assert "error: rank 1 was killed" in said.err
    assert f"1 of 2 videos are missing; go on with --resume {run}" in said.err


def test_ctrl_c_is_said(attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(130))
    assert start.start(LauncherKind.torchrun, plan, attempt, by_hand()) == 130
    assert "ended by SIGINT" in capsys.readouterr().err


@pytest.mark.parametrize(("others", "code"), [(False, 1), (True, 0)])
def test_ranks_that_end_well_and_leave_videos(
    others: bool, code: int, attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is well only if somebody else makes them."""
    run = attempt.parents[1]
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(0))
    heart = Heartbeat(run / "attempts/7/heartbeat/rank0.json", rank=0, host="elsewhere")
    (run / "attempts/7/heartbeat").mkdir(parents=True)
    heart.write(heart.beat(heart.now(), "running" if others else "done"))
    assert start.start(LauncherKind.torchrun, plan, attempt, by_hand()) == code
    goes_on = f"and others are at work on them: opensora-launch status {run}"
    assert capsys.readouterr().err == (
        f"2 of 2 videos are missing{f', {goes_on}' if others else f'; go on with --resume {run}'}\n"
    )


def test_a_full_disk_costs_the_report_and_not_the_run(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    for video in ("0000_0", "0001_0"):
        (run / "samples" / f"{video}.json").write_text('{"cut_tokens": 0}')
    (run / "samples/0001_0.json").write_text('{"cut_tokens": 12}')
    (run / "report.json").mkdir()  # so that it cannot be written
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(0))
    assert start.start(LauncherKind.torchrun, plan, attempt, by_hand()) == 0
    said = capsys.readouterr()
    assert f"no report, Is a directory; make room, then: opensora-launch report {run}\n" in said.out
    assert said.err == "0001_0: the last 12 tokens of its prompt do not fit and are not seen\n"


def test_a_disk_that_is_full_from_the_start(empty_folder: Path) -> None:
    """A real limit on the size of a file stands for it."""
    done = subprocess.run(
        [sys.executable, "-m", "opensora_launch.cli", "generate", "--prompt", "x", "model=tiny", "topology=cpu1"],
        cwd=empty_folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: File too large")
    assert "Traceback" not in done.stderr


def test_report_of_a_run_without_telemetry(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(attempt.parents[1])]) == 0
    assert (attempt.parents[1] / "report.json").exists()
    assert capsys.readouterr().out
