"""What a follower tells of a job, from a scripted Slurm and the files of ranks that never ran."""

from pathlib import Path

import pytest

from opensora_launch.cli import follow as following
from opensora_launch.cli.follow import Followed, follow
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.files import read_plan
from opensora_launch.telemetry.failure import Failure, record_failure
from tests.cli.followed import Says, beats, later, news


def test_a_failure_is_told_once_when_it_appears_and_nothing_works_from_then_on(attempt: AttemptDir, says: Says) -> None:
    followed = Followed("7", attempt.run, 0)
    says("squeue", "7|RUNNING|n[1-2]|None")
    beats(attempt)
    assert news(followed) == ["job 7: RUNNING n[1-2]"]
    assert followed.at_work() == followed.attempts[0]
    attempt.log(1).write_text("the end\n")
    record_failure(attempt, Failure(1, "n2", "failure", "ValueError: no", phase="vae"))
    beats(attempt, 2)
    told = ["error: rank 1 on n2 failed in phase vae: ValueError: no", f"log: {attempt.log(1)}", "  | the end"]
    assert news(followed) == told
    assert followed.at_work() is None
    assert news(followed) == []


@pytest.mark.parametrize(
    ("state", "ranks", "works"),
    [
        ("RUNNING", "running", True),
        ("RUNNING", "done", True),
        ("RUNNING", "preempted", False),
        ("COMPLETING", "running", False),
        ("COMPLETING", "done", False),
        ("PENDING", "running", False),
        ("REQUEUED", "done", False),
    ],
)
def test_no_rank_works_while_a_job_completes_or_waits(
    state: str, ranks: str, works: bool, attempt: AttemptDir, says: Says
) -> None:
    says("squeue", f"7|{state}||BeginTime")
    beats(attempt, state=ranks)
    followed = Followed("7", attempt.run, 0)
    followed.look()
    assert (followed.at_work() is not None) is works


def test_heartbeats_that_do_not_move_are_of_dead_ranks(
    attempt: AttemptDir, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock of their host says, and while Slurm says nothing."""
    followed = Followed("7", attempt.run, 0)
    beats(attempt)
    followed.look()
    assert followed.at_work()
    monkeypatch.setattr(following, "ALIVE_S", 0.0)
    followed.look()
    assert followed.at_work() is None
    monkeypatch.undo()
    later(attempt)
    followed.look()
    assert followed.at_work() is None, "its job has started again"


def test_each_restart_is_told_once_with_its_cause(attempt: AttemptDir, says: Says) -> None:
    """A lost node by Slurm's list of nodes, everything else by the job's log."""
    followed, log = Followed("7", attempt.run, 0), attempt.logs / "job.log"
    log.write_text(f"job 7 on n[1-2]: {attempt}\n")
    says("squeue", "7|RUNNING|n[1-2]|None")
    news(followed)
    says("squeue", "7|PENDING||BeginTime")
    says("sinfo", "n1|idle|none", "n2|down*|Not responding", "n2|down*|Not responding")
    waits = "job 7: PENDING BeginTime"
    assert news(followed) == [f"job 7: requeued: lost: n2 (Not responding); log: {log}", waits]
    assert news(followed) == []
    says("squeue", "7|RUNNING|n1|None")
    says("sinfo", "n1|mixed|none")
    assert news(followed) == ["job 7: RUNNING n1"], "before it has found its folder"
    second = later(attempt)
    assert news(followed) == []
    with log.open("a") as file:
        file.write(
            f"job 7 on n1: {second}\nslurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026 DUE TO PREEMPTION ***\n"
        )
    third = later(attempt, 2)
    assert news(followed) == [f"job 7: requeued: preemption; log: {log}"], "it waited between two looks"
    third.requeued.write_text("the ranks have stored their state\n")
    says("squeue", "7|PENDING||BeginTime")
    assert news(followed) == [f"job 7: requeued: the ranks have stored their state; log: {log}", waits]


def test_to_go_on_with_less_memory_is_no_restart(attempt: AttemptDir, says: Says) -> None:
    followed = Followed("7", attempt.run, 0)
    says("squeue", "7|RUNNING|n1|None")
    news(followed)
    record_failure(attempt, Failure(0, "n1", "memory", "out of memory"))
    later(attempt)
    assert news(followed) == ["error: rank 0 on n1 failed: out of memory"], "no log is named where none exists"
    assert news(followed) == []


@pytest.mark.usefixtures("at_once")
def test_quick_errors_do_not_end_following(
    attempt: AttemptDir, tmp_path: Path, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """Slurm's controller restarts: fifty errors within seconds."""
    down = "slurm_load_jobs error: Unable to contact slurm controller"
    for command in ("squeue", "scontrol", "sacct"):
        says(command, error=down)
    asked = tmp_path / "asked"
    (tmp_path / "bin/squeue").write_text(
        f"#!/bin/sh\necho >>{asked}\n[ $(wc -l <{asked}) -gt 50 ] && exec echo '7|FAILED|n1|NonZeroExitCode'\n"
        f"echo '{down}' >&2; exit 1\n"
    )
    assert follow("7", read_plan(attempt.plan), attempt) == 1
    said = capsys.readouterr().err
    assert "job 7: FAILED n1\n" in said
    assert f"1 of 1 videos is missing; continue with --resume {attempt.run}" in said


@pytest.mark.usefixtures("at_once")
def test_who_gives_up_on_slurm_does_not_advise_to_resume(
    attempt: AttemptDir, says: Says, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("squeue", "scontrol", "sacct"):
        says(command, error="slurm_load_jobs error: Unable to contact slurm controller")
    monkeypatch.setattr(following, "PATIENCE_S", 0.0)
    beats(attempt)
    assert follow("7", read_plan(attempt.plan), attempt) == 1
    said = capsys.readouterr().err
    assert "job 7 may still run: squeue: slurm_load_jobs error: Unable to contact slurm controller" in said
    assert f"follow: opensora-launch status {attempt.run}" in said
    assert "--resume" not in said


def test_patience_is_counted_from_the_last_sign_of_life(attempt: AttemptDir, says: Says) -> None:
    says("squeue", error="slurm_load_jobs error: Unable to contact slurm controller")
    followed = Followed("7", attempt.run, 0)
    followed.heard_s = 0.0
    followed.look()
    assert followed.heard_s == 0.0
    beats(attempt)
    followed.look()
    heard_s = followed.heard_s
    assert heard_s > 0
    followed.look()
    assert followed.heard_s == heard_s, "the same beats"
    says("squeue", "7|RUNNING|n1|None")
    followed.look()
    assert followed.heard_s > heard_s
