"""What a user sees while ranks run, and when they have ended."""

import json
import re
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main, start
from opensora_launch.cli.ending import failure_lines
from opensora_launch.cli.view import RunView, describe, progress
from opensora_launch.launch.supervise import Outcome
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.attempt import by_hand, prepare_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.finished_videos import record_failed
from opensora_launch.runs.progress import share_done
from opensora_launch.schema.config import LauncherKind
from opensora_launch.telemetry.failure import Failure
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import on_gpus, sampled, work_began
from tests.samples import finish_video


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


@pytest.fixture
def attempt() -> Path:
    return prepare_attempt(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2)).path


@pytest.mark.parametrize(
    ("at", "said", "share"),
    [
        (beat("load", videos=0), "load", None),
        (beat("text"), "text, video 1 of 4", 0.0),
        (beat(step=4, steps=5, videos_done=1), "denoise, video 2 of 4, step 5 of 5", 1.8 / 4),
        (beat("vae", videos_done=3), "vae, video 4 of 4", 0.75),
        (beat("save", videos_done=4), "finishing", 1.0),
        (beat(state="done"), "finishing", 0.0),
        (beat(state="failed"), "failed", 0.0),
        (beat(state="preempted"), "preempted", 0.0),
    ],
)
def test_progress_in_words_and_as_a_share(at: Beat, said: str, share: float | None) -> None:
    assert describe([at]) == said
    assert share_done([at]) == share


def test_a_pipe_gets_a_line_for_each_phase(attempt: Path) -> None:
    """With the time left, once 2% is done."""
    folder, out = AttemptDir(attempt), attempt / "out"
    with out.open("w") as stream, progress(stream) as show:
        show(folder, [])
        for at in (beat("text"), beat("text"), beat(step=0, steps=9)):
            show(folder, [at])
        work_began(attempt, time.time() - 5, 0)
        for at in (beat(step=3, steps=9), beat("vae")):
            show(folder, [at])
    assert re.sub(r"\d+ s left", "N s left", out.read_text()).splitlines() == [
        "text, video 1 of 4",
        "denoise, video 1 of 4, step 1 of 9",
        "vae, video 1 of 4; about N s left",
    ]


@pytest.mark.parametrize(("other", "left"), [("running", True), ("done", True), ("failed", False), ("preempted", True)])
def test_there_is_no_time_left_where_a_rank_is_dead(other: str, left: bool, attempt: Path) -> None:
    work_began(attempt, time.time() - 5, 0)
    view = RunView(AttemptDir(attempt))
    view.look([beat(step=3, steps=9), beat(step=3, steps=9, rank=1, state=other)])
    assert (view.seconds_left is not None) is left
    view.beats = [replace(each, time_s=each.time_s - 999) for each in view.beats]  # they did not move since
    assert view.seconds_left is None


def stuck_ranks(count: int, **more: Any) -> list[Beat]:
    """All but the last one wait for it, for nine seconds."""
    now, ranks = time.time(), tuple(range(count))
    inside = beat(time_s=now, collective="ulysses", ranks=ranks, sequence=7, inside=True, progress_s=now - 9, **more)
    return [replace(inside, rank=rank, inside=rank < count - 1) for rank in ranks]


def test_a_pipe_is_told_who_waits_and_what_the_gpus_do(empty_folder: Path) -> None:
    """The mean of their use, the fullest memory, the power of all."""
    uuids = [f"GPU-{n}" for n in range(4)]
    on_gpus(empty_folder, uuids)
    gpus = [{"gpu": n, "util": n / 4, "memory_used_bytes": (n + 1) << 30, "power_w": 300.0 + n} for n in range(4)]
    sampled(empty_folder, "h", uuids, [{"time_s": 1.0, "gpus": gpus}])
    with (empty_folder / "out").open("w") as stream, progress(stream) as show:
        show(AttemptDir(empty_folder), stuck_ranks(4, step=4, steps=9))
    assert (empty_folder / "out").read_text() == (
        "denoise, video 1 of 4, step 5 of 9; GPUs: 38% busy, 4.0 GiB at most, 1.2 kW; 3 of 4 ranks wait for rank 3\n"
    )


def test_a_pipe_is_told_what_ranks_on_cpus_use(empty_folder: Path) -> None:
    """All of them are in one collective that does not end: they wait for nobody."""
    seen = [[{"rank": r, "cpu_s": (r + 1) * n / 2, "memory_bytes": (r + 1) << 30} for r in range(2)] for n in range(2)]
    sampled(empty_folder, "h", [], [{"time_s": float(n), "ranks": ranks} for n, ranks in enumerate(seen)])
    beats = [replace(b, inside=True) for b in stuck_ranks(2)]
    with (empty_folder / "out").open("w") as stream, progress(stream) as show:
        show(AttemptDir(empty_folder), beats)
    assert (empty_folder / "out").read_text() == (
        "denoise, video 1 of 4; ranks: 75% of a core, 2.0 GiB at most; 2 of 2 ranks wait\n"
    )


def test_a_failure_names_rank_place_log_and_its_last_lines(attempt: Path) -> None:
    log = attempt / "logs" / "rank1.log"
    log.write_text("\n".join(f"line {i}" for i in range(50)))
    own = Failure(rank=1, host="h", kind="failure", message="ValueError: no", phase="vae", step=3, traceback="T")
    lines = list(failure_lines(own, AttemptDir(attempt)))
    assert lines[:2] == ["error: rank 1 on h failed in phase vae, step 3: ValueError: no", f"log: {log}"]
    assert lines[2:] == [f"  | line {i}" for i in range(38, 50)]
    log.unlink()
    (attempt / "logs" / "torchrun.log").write_text("No module named x\n")
    verdict = Failure(rank=1, host="h", kind="stalled", message="rank 1 (pid 7) has been silent", phase="vae")
    assert list(failure_lines(verdict, AttemptDir(attempt))) == [
        "error: rank 1 (pid 7) has been silent",
        f"log: {attempt / 'logs' / 'torchrun.log'}",
        "  | No module named x",
    ]
    assert list(failure_lines(Failure(rank=0, host="h", kind="user", message="bad"), AttemptDir(attempt))) == [
        "error: bad"
    ]


def test_the_end_of_a_run_that_failed(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    finish_video(run, "0000_0")
    (run / "samples" / "0001_0.mp4").touch()  # not finished
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    failure = Failure(rank=1, host="h", kind="failure", message="rank 1 was killed")
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(1, failure))
    assert start.start_run(LauncherKind.torchrun, plan, AttemptDir(attempt), by_hand(), 0.0) == 1
    said = capsys.readouterr()
    begun = [f"making 2 videos in {run}", f"watch it: opensora-launch top {run}"]
    assert said.out.splitlines() == [*begun, str(run / "samples" / "0000_0.mp4"), f"run: {run}"]
    assert "error: rank 1 was killed" in said.err
    assert f"1 of 2 videos is missing; continue with --resume {run}" in said.err


def test_ctrl_c_is_said(attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(130))
    assert start.start_run(LauncherKind.torchrun, plan, AttemptDir(attempt), by_hand(), 0.0) == 130
    assert "stopped by Ctrl-C" in capsys.readouterr().err


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
    assert start.start_run(LauncherKind.torchrun, plan, AttemptDir(attempt), by_hand(), 0.0) == code
    goes_on = f"and others work on them: opensora-launch status {run}"
    assert capsys.readouterr().err == (
        f"2 of 2 videos are missing{f', {goes_on}' if others else f'; continue with --resume {run}'}\n"
    )


@pytest.mark.parametrize(("ended", "code", "left"), [(0, 1, 0), (0, 1, 1), (1, 1, 0), (2, 2, 0), (75, 75, 1)])
def test_a_failed_video_fails_the_run(
    ended: int,
    code: int,
    left: int,
    attempt: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its ranks end well. A video that failed is not missing: nobody will make it, except after --resume."""
    run = attempt.parents[1]
    record_failed(RunDir(run), {"0001_0": "the VAE made no numbers"})
    if not left:
        finish_video(run, "0000_0")
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(ended))
    assert start.start_run(LauncherKind.torchrun, plan, AttemptDir(attempt), by_hand(), 0.0) == code
    again = f"continue with --resume {run}"
    last = f"1 of 2 videos is missing; {again}" if left else again
    assert capsys.readouterr().err.splitlines() == ["0001_0 failed: the VAE made no numbers", last]


def test_a_full_disk_costs_the_report_and_not_the_run(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    for video in ("0000_0", "0001_0"):
        finish_video(run, video, cut_tokens=12 if video == "0001_0" else 0)
    (run / "report.json").mkdir()  # so that it cannot be written
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text()))
    monkeypatch.setattr(start, "supervise", lambda task, show: Outcome(0))
    assert start.start_run(LauncherKind.torchrun, plan, AttemptDir(attempt), by_hand(), 0.0) == 0
    said = capsys.readouterr()
    reason = f"Is a directory: {run / 'report.json'}"
    assert f"no report, {reason}; make room, then: opensora-launch report {run}\n" in said.out
    assert said.err == "0001_0: the last 12 tokens of its prompt do not fit and are ignored\n"


def test_a_disk_that_is_full_from_the_start(empty_folder: Path) -> None:
    """A real limit on the size of a file stands for it."""
    done = subprocess.run(
        [sys.executable, "-m", "opensora_launch.cli", "generate", "--prompt", "x", "model=tiny", "topology=cpu1"],
        cwd=empty_folder,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)),
    )
    (run,) = (empty_folder / "runs").iterdir()
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, f"error: File too large: {run / 'config.yaml'}")
    assert "Traceback" not in done.stderr


def test_report_of_a_run_without_telemetry(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(attempt.parents[1])]) == 0
    assert (attempt.parents[1] / "report.json").exists()
    assert capsys.readouterr().out


def test_a_launcher_that_torchrun_started_is_refused(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for verb in (["generate", "--prompt", "a"], ["verify"]):
        assert main(verb) == 2
        assert "torchrun ... -m opensora_launch.worker" in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []
