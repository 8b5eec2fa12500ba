"""`status` and `cancel` of runs without a job: from heartbeats, records and processes."""

import json
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opensora_launch.cli import main
from opensora_launch.plan.after_denoising import share_after_denoising
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.files import read_plan
from opensora_launch.runs.finished_videos import record_failed
from opensora_launch.runs.state import Launched, jobs_of, read_attempts, read_state, record_launch, this_process
from opensora_launch.slurm import query as slurm_query
from opensora_launch.slurm.query import _code, exit_code, job_states
from opensora_launch.telemetry.failure import Failure, record_failure
from tests.cli.runs import beat, work_began, write_beats
from tests.samples import finish_video

HERE = socket.gethostname()


@pytest.fixture
def attempt() -> Path:
    return prepare_attempt(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2)).path


def shown(capsys: pytest.CaptureFixture[str], run: Path) -> str:
    assert main(["status", str(run)]) == 0
    return capsys.readouterr().out


def test_failed_videos_are_told(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = attempt.parents[1]
    record_failed(RunDir(run), {"0000_0": "it was made later", "0001_0": "ref a.png: no such file"})
    finish_video(run, "0000_0")
    assert shown(capsys, run).splitlines()[1:3] == [
        "videos: 1 of 2 done, 1 failed",
        "0001_0 failed: ref a.png: no such file",
    ]
    assert main(["report", str(run)]) == 0
    assert "0001_0 failed: ref a.png: no such file" in capsys.readouterr().out
    report = json.loads((run / "report.json").read_text())
    assert (report["status"], report["videos"]) == ("failed", {"asked": 2, "done": 1, "failed": 1})
    assert [sample["failure"] for sample in report["samples"]] == [None, "ref a.png: no such file"]
    assert "0001_0: ref a.png: no such file" in (run / "report.md").read_text().replace("\\", "")


def test_a_run_at_work(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = attempt.parents[1]
    write_beats(attempt, beat(), beat(1, host="n7", time_s=time.time() - 99_999))
    work_began(attempt, time.time() - 1_000, 0, 1)
    text = shown(capsys, run)
    assert "attempt 0: running" in text
    log = attempt / "logs"
    assert f"rank 0 on {HERE}: running, denoise, video 1 of 2, step 3 of 6; {log / 'rank0.log'}" in text
    lost = re.search(r"rank 1 on n7: lost, silent for (\d+) s, denoise, video 1 of 2, step 3 of 6", text)
    assert lost
    assert int(lost[1]) >= 99_999
    share = (1 - share_after_denoising(read_plan(attempt / "plan.json"))) * 2 / 12
    assert seconds_left(text, 2) == pytest.approx(1_000 / share - 1_000, rel=0.1), "1,000 s for 2 of 12 steps"


def seconds_left(text: str, videos: int) -> int:
    (left,) = re.findall(rf"videos: 0 of {videos} done, about (\d+):(\d\d):(\d\d) left", text)
    hours, minutes, seconds = map(int, left)
    return 3600 * hours + 60 * minutes + seconds


def test_a_run_that_failed(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_beats(attempt, beat(state="failed"), beat(1, state="failed"))
    record_failure(AttemptDir(attempt), Failure(1, HERE, "failure", "ValueError: no", phase="vae"))
    text = shown(capsys, attempt.parents[1])
    assert "attempt 0: failed" in text
    assert f"error: rank 1 on {HERE} failed in phase vae: ValueError: no" in text


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (("done", "done"), "done"),
        (("preempted", "done"), "preempted"),
        (("running", "done"), "stopped without a report"),
    ],
)
def test_a_run_that_is_over(
    states: tuple[str, str], said: str, attempt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_beats(attempt, *(beat(i, state=state, pid=2**22 + 1) for i, state in enumerate(states)))
    assert f"attempt 0: {said}" in shown(capsys, attempt.parents[1])


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 2
    assert main(["cancel", str(tmp_path)]) == 2
    assert "is not a run's folder" in capsys.readouterr().err


def test_who_is_asked_and_who_answers(fake_slurm: Path) -> None:
    (by_sacct,) = job_states("7")
    assert (by_sacct.job, by_sacct.state, by_sacct.nodes, by_sacct.exit_code) == ("7_2", "CANCELLED", "n[1-2]", 143)
    assert (by_sacct.source, by_sacct.over) == ("sacct", True)
    (fake_slurm / "known").touch()
    (by_scontrol,) = job_states("7")
    assert (by_scontrol.source, by_scontrol.job, by_scontrol.exit_code) == ("scontrol", "7_2", 75)
    assert exit_code([by_scontrol]) == 75
    done = replace(by_scontrol, state="COMPLETED", exit_code=0)
    assert exit_code([done]) == 0
    assert exit_code([replace(by_scontrol, state="TIMEOUT", exit_code=0)]) == 1
    assert [exit_code([by_sacct]), exit_code([replace(done, state="FAILED", exit_code=137)])] == [1, 1]
    assert exit_code([done, by_scontrol]) == 75
    assert exit_code([by_scontrol, replace(done, state="FAILED", exit_code=2)]) == 2
    assert exit_code([by_sacct, replace(done, state="FAILED", exit_code=2)]) == 1
    assert exit_code([]) == 1
    assert [_code(text) for text in ("0:0", "2:0", "0:9")] == [0, 2, 137]


def test_a_job_is_asked_once_and_an_array_whole(attempt: Path) -> None:
    run = attempt.parents[1]
    for number, job in enumerate(("7", "7", "7_2", "8", "9_1")):
        (run / f"attempts/{number}").mkdir(exist_ok=True)
        record_launch(AttemptDir(run / f"attempts/{number}"), Launched("slurm", job=job))
    assert jobs_of(read_attempts(RunDir(run))) == ["7", "8", "9"]


def test_a_queued_job_is_not_resumed_over(attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '7|PENDING||Priority'\n")
    record_launch(AttemptDir(attempt), Launched("slurm", job="7"))
    run = attempt.parents[1]
    assert main(["generate", "--resume", str(run)]) == 2
    assert f"job 7 is PENDING: opensora-launch cancel {run} ends it" in capsys.readouterr().err
    assert "job 7: PENDING (Priority), according to squeue" in shown(capsys, run)


@pytest.fixture
def two_jobs(attempt: Path) -> Path:
    """A run on which two jobs have worked."""
    for number, job in enumerate(("7", "8")):
        (attempt.with_name(str(number))).mkdir(exist_ok=True)
        record_launch(AttemptDir(attempt.with_name(str(number))), Launched("slurm", job=job))
    return attempt.parents[1]


def test_without_slurm_nothing_is_known(
    two_jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert main(["cancel", str(two_jobs)]) == 1
    why = "Slurm cannot be asked (there is no squeue on this host)"
    assert capsys.readouterr().out == "".join(f"job {n} may still run: {why}; scancel {n} stops it\n" for n in (7, 8))
    assert f"job 7: {why}\njob 8: {why}\n" in shown(capsys, two_jobs)


def test_a_slurm_that_does_not_answer_is_waited_for_once(
    two_jobs: Path, fake_slurm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm_query, "ASK_S", 1.0)
    (fake_slurm / "bin" / "squeue").write_text(f"#!/bin/sh\necho asked >>{fake_slurm}/asked\nexec sleep 60\n")
    assert main(["cancel", str(two_jobs)]) == 1
    said = capsys.readouterr().out
    silence = "Slurm cannot be asked (squeue does not answer within 1 s)"
    assert all(f"job {n} may still run: {silence}" in said for n in (7, 8))
    assert (fake_slurm / "asked").read_text() == "asked\n"


def test_a_controller_that_is_down_is_no_unknown_job(fake_slurm: Path) -> None:
    down = "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n"
    for name in ("squeue", "scontrol"):
        (fake_slurm / "bin" / name).write_text(down)
    assert [state.source for state in job_states("7")] == ["sacct"]
    (fake_slurm / "bin" / "sacct").write_text("#!/bin/sh\n")  # as it is for every job where accounting is off
    with pytest.raises(slurm_query.NoAnswer, match="Unable to contact"):
        job_states("7")
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho 'Invalid job id specified' >&2; exit 1\n")
    assert job_states("7") == []


def test_slurm_and_the_error_are_believed_before_a_heartbeat(
    attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last beats of ranks that are gone are fresh for a while."""
    run = attempt.parents[1]
    write_beats(attempt, beat(host="n1"), beat(1, host="n1"))
    record_launch(AttemptDir(attempt), Launched("slurm", job="7_2"))
    ends = ("FAILED", "COMPLETING", "PENDING")
    for state, said in (*((end, f"over, its job is {end}") for end in ends), ("RUNNING", "running")):
        (fake_slurm / "bin" / "squeue").write_text(f"#!/bin/sh\necho '7_2|{state}|n1|None'\n")
        text = shown(capsys, run)
        assert f"attempt 0: {said}\n" in text
        assert ("rank 0 on n1: running" in text) is (state == "RUNNING")
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '7_2|FAILED|n1|None'\n")
    assert not read_state(RunDir(run)).to_come()
    record_launch(AttemptDir(attempt), Launched("torchrun", "n1", 1, 1))
    assert "attempt 0: running\n" in shown(capsys, run)
    assert read_state(RunDir(run)).to_come()
    record_failure(AttemptDir(attempt), Failure(1, "n1", "failure", "ValueError: no", phase="vae"))
    assert "attempt 0: failed\n" in shown(capsys, run)
    assert not read_state(RunDir(run)).to_come()


def test_a_step_whose_launcher_was_killed(attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its ranks were killed with it on other hosts, so their last heartbeats are fresh: Slurm tells."""
    write_beats(attempt, beat(host="n1"))
    gone, here = Launched("srun", HERE, 2**22 + 1, 1, allocation="7", step="x"), this_process("srun")
    elsewhere = replace(gone, host="another")
    for launched, steps, said in (
        (gone, "", "stopped without a report"),
        (gone, "7.0|x", "running"),
        (replace(here, allocation="7", step="x"), "", "running"),
        (elsewhere, "", "running"),
    ):
        (fake_slurm / "bin" / "squeue").write_text(f"#!/bin/sh\ncase $* in *--steps*) echo '{steps}' ;; esac\n")
        record_launch(AttemptDir(attempt), launched)
        assert f"attempt 0: {said}\n" in shown(capsys, attempt.parents[1])


@pytest.mark.parametrize("launched", [Launched("slurm", job="7"), Launched("srun", "login", 1, 1, allocation="7")])
def test_a_suspended_job_is_neither_lost_nor_stopped(
    attempt: Path, launched: Launched, fake_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '7|SUSPENDED|n1|None'\n")
    record_launch(AttemptDir(attempt), launched)
    for age_s in (0, 99_999):
        write_beats(attempt, beat(host="n1", time_s=time.time() - age_s))
        text = shown(capsys, attempt.parents[1])
        assert "attempt 0: suspended by Slurm\n" in text
        assert "rank 0 on n1: suspended, denoise, video 1 of 2, step 3 of 6;" in text


def test_an_attempt_that_its_job_has_left_behind(
    attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '7|RUNNING|n1|None'\n")
    second = attempt.with_name("1")
    (second / "heartbeat").mkdir(parents=True)
    for each in (attempt, second):
        record_launch(AttemptDir(each), Launched("slurm", job="7"))
        write_beats(each, beat(host="n1"))
    text = shown(capsys, attempt.parents[1])
    assert "attempt 1: running\n" in text
    assert "attempt 0" not in text


def test_what_was_ended_from_outside_says_by_what(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_beats(attempt, beat(pid=2**22 + 1))
    record_launch(AttemptDir(attempt), Launched("torchrun", HERE, 2**22 + 1, 1, ended="SIGINT"))
    text = shown(capsys, attempt.parents[1])
    assert "attempt 0: stopped by Ctrl-C\n" in text
    assert ": stopped, denoise" in text
    write_beats(attempt, beat(state="failed"))  # the last word of a rank that Ctrl-C reached
    assert main(["top", str(attempt.parents[1])]) == 0
    assert capsys.readouterr().out.startswith("the rank has ended, 1 stopped\n")
    assert main(["report", str(attempt.parents[1])]) == 0
    assert capsys.readouterr().out.startswith("The run was stopped by Ctrl-C: 0 of 2 videos made.\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as rank:
        write_beats(attempt, beat(pid=rank.pid))
        (attempt / "launcher.json").unlink()
        assert main(["cancel", str(attempt.parents[1])]) == 0
        capsys.readouterr()
        assert "attempt 0: stopped by opensora-launch cancel\n" in shown(capsys, attempt.parents[1])


def test_where_a_run_stands_that_was_stopped(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = attempt.parents[1]
    (run / "checkpoints").mkdir()
    save_file({"latents": torch.zeros(3)}, run / "checkpoints/0001_0.safetensors", metadata={"step": "4"})
    (run / "checkpoints/torn.safetensors").write_bytes(b"\xff" * 20)
    write_beats(attempt, beat(state="preempted"))
    text = shown(capsys, run)
    assert "attempt 0: preempted\n" in text
    assert "0001_0 is stored after step 4\n" in text


def test_the_time_left_is_shared_by_all_who_work(capsys: pytest.CaptureFixture[str]) -> None:
    """Seven videos of six steps, two of them in the making by two attempts: 2 of 42 steps took 1,000 s."""
    prompts = [word for i in range(7) for word in ("--prompt", str(i))]
    first = prepare_attempt([*prompts, "model=tiny", "layout.dp=1"], Machine("cpu", 1, 1, 1)).path
    second = first.with_name("1")
    (second / "heartbeat").mkdir(parents=True)
    for each, name in ((first, "0000_0"), (second, "0001_0")):
        write_beats(each, beat(video=name, step=1, videos=7))
        work_began(each, time.time() - 1_000, 0)
    share = (1 - share_after_denoising(read_plan(first / "plan.json"))) * 2 / 42
    assert seconds_left(shown(capsys, first.parents[1]), 7) == pytest.approx(1_000 / share - 1_000, rel=0.1)
