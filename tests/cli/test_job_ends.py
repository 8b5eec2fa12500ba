"""Jobs that do not start, fail before their ranks report, or leave tasks behind: what follow and status tell."""

import re

import pytest

from opensora_launch.cli import follow as following
from opensora_launch.cli import main
from opensora_launch.cli.follow import Followed, follow
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.state import Launched, record_launch
from opensora_launch.slurm.pending import advice_on
from tests.cli.followed import Says, news
from tests.samples import finish_video


@pytest.mark.parametrize(
    ("job", "log", "told"),
    [
        (
            "JobId=7 JobState=FAILED Reason=JobLaunchFailure NodeList=n1 ExitCode=0:53",
            "",
            [
                "error: job 7 ended as FAILED on n1: JobLaunchFailure, was killed by signal 53",
                "may not see",
                "runs_dir=",
            ],
        ),
        (
            "JobId=7 JobState=FAILED Reason=NonZeroExitCode NodeList=n1 ExitCode=127:0",
            "slurm_script: line 37: /nowhere/python: No such file or directory\n",
            [
                "FAILED on n1: NonZeroExitCode, ended with exit code 127",
                "/nowhere/python: No such",
                "may not have this Py",
            ],
        ),
        (
            "JobId=7 JobState=OUT_OF_MEMORY Reason=OutOfMemory NodeList=n[1-2] ExitCode=0:125",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\nsrun: error: n2: task 1: Out Of Memory\n",
            [
                "ended as OUT_OF_MEMORY on n[1-2]: OutOfMemory",
                "  | slurmstepd: error: Detected",
                "  | the end of rank 1",
            ],
        ),
        (
            "JobId=7 JobState=FAILED Reason=NonZeroExitCode NodeList=n[1-2] ExitCode=1:0",
            "srun: error: task 1 launch failed: Slurmd could not connect IO\n",
            ["  | srun: error: task 1 launch", "hint: n[1-2] may not see"],
        ),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_what_fails_before_the_first_heartbeat_is_told(
    job: str, log: str, told: list[str], attempt: AttemptDir, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """By Slurm's state and reason, the job's log and that of the rank that srun names first, with a hint; by both."""
    says("scontrol", job)
    state, reason, nodes = (re.search(rf"{key}=(\S+)", job)[1] for key in ("JobState", "Reason", "NodeList"))  # type: ignore[index]
    says("squeue", f"7|{state}|{nodes}|{reason}")
    attempt.log(1).write_text("the end of rank 1\n")
    if log:
        (attempt.logs / "job.log").write_text(log)
    assert follow("7", read_plan(attempt.plan), attempt) == 1
    said = capsys.readouterr().err
    assert main(["status", str(attempt.run)]) == 0
    by_squeue = capsys.readouterr().out
    for words in told:
        assert words in said
        assert words.partition(", ")[0] in by_squeue


def test_no_folder_is_blamed_for_a_job_by_hand(
    attempt: AttemptDir, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its log is where its user wants it."""
    attempt.batch_script.unlink()
    says("squeue", "7|FAILED|n1|NonZeroExitCode")
    assert main(["status", str(attempt.run)]) == 0
    assert capsys.readouterr().out.endswith("error: job 7 ended as FAILED on n1: NonZeroExitCode\n")


@pytest.mark.parametrize(
    ("reason", "advice"),
    [
        ("PartitionTimeLimit", "lower launcher.slurm.time"),
        ("QOSMaxWallDurationPerJobLimit", "lower launcher.slurm.time"),
        ("PartitionNodeLimit", "ask for less"),
        ("QOSMaxCpuPerJobLimit", "ask for less"),
        ("AssocMaxNodePerJobLimit", "ask for less"),
        ("BadConstraints", "ask for less"),
        ("InvalidAccount", "set account"),
        ("QOSNotAllowed", "set account"),
        ("DependencyNeverSatisfied", "has failed"),
        ("JobHeldUser", "scontrol release"),
        ("launch failed requeued held", "scontrol release"),
        ("ReqNodeNotAvail, UnavailableNodes:n[1-2]", "sinfo -R"),
        *(
            (waits, "")
            for waits in ("None", "Priority", "Resources", "BeginTime", "Dependency", "QOSMaxJobsPerUserLimit")
        ),
    ],
)
def test_reasons_that_waiting_does_not_end(reason: str, advice: str) -> None:
    assert advice in advice_on(reason)
    assert bool(advice) == bool(advice_on(reason))


def test_a_job_that_cannot_start_is_said_and_not_followed_for_ever(
    attempt: AttemptDir, says: Says, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While one task of an array waits for its turn, there is hope."""
    stuck = "7_1|PENDING||PartitionTimeLimit|N/A"
    says("squeue", "7_0|PENDING||Priority|N/A", stuck)
    followed = Followed("7", attempt.run, 0)
    assert news(followed) == ["job 7: PENDING Priority, PENDING PartitionTimeLimit"]
    says("squeue", stuck)
    monkeypatch.setattr(following, "PATIENCE_S", 0.0)
    assert follow("7", read_plan(attempt.plan), attempt) == 1
    said = capsys.readouterr().err
    assert "job 7: PENDING PartitionTimeLimit\n" in said
    assert "job 7 does not start by waiting: PartitionTimeLimit; lower launcher.slurm.time\n" in said
    assert "job 7 stays in the queue and is not followed further" in said
    assert f"cancel: opensora-launch cancel {attempt.run}" in said
    record_launch(attempt, Launched("slurm", job="7_1"))
    assert main(["status", str(attempt.run)]) == 0
    assert "it does not start by waiting: lower launcher.slurm.time" in capsys.readouterr().out


def test_the_expected_start_is_told_once(attempt: AttemptDir, says: Says, capsys: pytest.CaptureFixture[str]) -> None:
    followed = Followed("7", attempt.run, 0)
    told = []
    for start in ("N/A", "2026-11-30T01:00:00", "2026-11-30T01:02:00"):
        says("squeue", f"7|PENDING||Priority|{start}")
        told += news(followed)
    assert told == [
        "job 7: PENDING Priority",
        "job 7: PENDING Priority, expected to start at 2026-11-30T01:00:00",
    ]
    assert main(["status", str(attempt.run)]) == 0
    assert "job 7: PENDING (Priority), expected to start at 2026-11-30T01:02:00, acc" in capsys.readouterr().out
    says("squeue", "7|RUNNING|n1|None|2026-11-30T01:02:00")
    assert news(followed) == ["job 7: RUNNING n1"]


@pytest.mark.parametrize(
    ("state", "code", "made", "exit_code"),
    [
        ("CANCELLED", "0:15", True, 0),
        ("FAILED", "75:0", True, 0),
        ("FAILED", "1:0", True, 1),
        ("CANCELLED", "0:15", False, 1),
    ],
)
@pytest.mark.usefixtures("at_once")
def test_a_task_that_was_cancelled_does_not_matter_where_all_videos_are_made(
    state: str, code: str, made: bool, exit_code: int, attempt: AttemptDir, says: Says
) -> None:
    says("squeue", "7_0|COMPLETED|n1|None", f"7_1|{state}|n1|None")
    says(
        "scontrol",
        "JobId=8 ArrayJobId=7 ArrayTaskId=0 JobState=COMPLETED Reason=None NodeList=n1 ExitCode=0:0",
        f"JobId=7 ArrayJobId=7 ArrayTaskId=1 JobState={state} Reason=None NodeList=n1 ExitCode={code}",
    )
    if made:
        finish_video(attempt.run.path, "0000_0")
    assert follow("7", read_plan(attempt.plan), attempt) == exit_code
