"""`status` and `cancel` of runs without a job: from heartbeats, records and processes."""

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opensora_launch.cli import main, prepare
from opensora_launch.launch import processes
from opensora_launch.launch.run_state import Launched, jobs_of, read_attempts, record_launch, seconds_left
from opensora_launch.launch.slurm_query import _code, exit_code, job_states
from opensora_launch.plan.plan import Machine
from opensora_launch.telemetry.events import Meta, Step, event_line, meta_line
from opensora_launch.telemetry.failure import Failure, record_failure
from opensora_launch.telemetry.stall import Beat

HERE = socket.gethostname()


@pytest.fixture
def attempt() -> Path:
    return prepare(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2))


def beat(rank: int = 0, **more: object) -> Beat:
    last = Beat(rank, HERE, os.getpid(), time.time(), "running", "denoise", "0000_0", 2, 6, 0, 2)
    return replace(last, **more)  # type: ignore[arg-type]


def write_beats(attempt: Path, *beats: Beat) -> None:
    for each in beats:
        (attempt / "heartbeat" / f"rank{each.rank}.json").write_text(json.dumps(asdict(each)))


def shown(capsys: pytest.CaptureFixture[str], run: Path) -> str:
    assert main(["status", str(run)]) == 0
    return capsys.readouterr().out


def test_a_run_at_work(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = attempt.parents[1]
    write_beats(attempt, beat(), beat(1, host="n7", time_s=time.time() - 99))
    telemetry = attempt / "telemetry" / "rank0.jsonl"
    facts = {"rank": 0, "world": 2, "local_rank": 0, "host": HERE, "device": "cpu", "device_name": "c", "threads": 1}
    meta = Meta(**facts, start_s=0.0, start_epoch_s=0.0, layouts={})  # type: ignore[arg-type]
    steps = [event_line(Step("0000_0", i, 2, 2, "x", 10.0 * i, 10.0 * i + 10)) for i in range(2)]
    telemetry.write_text(meta_line(meta) + "".join(steps))
    text = shown(capsys, run)
    assert "videos: 0 of 2 done" in text
    assert "attempt 0: running" in text
    log = attempt / "logs"
    assert f"rank 0 on {HERE}: running, denoise, video 1 of 2, step 3 of 6; {log / 'rank0.log'}" in text
    assert "rank 1 on n7: lost, silent for 99 s, denoise, video 1 of 2, step 3 of 6" in text
    assert seconds_left(read_attempts(run)[0], [6]) == 10.0 * (4 + 6)
    assert "of denoising left" in text


def test_a_run_that_failed(attempt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_beats(attempt, beat(state="failed"), beat(1, state="failed"))
    record_failure(attempt, Failure(1, HERE, "failure", "ValueError: no", phase="vae"))
    text = shown(capsys, attempt.parents[1])
    assert "attempt 0: failed" in text
    assert f"error: rank 1 on {HERE} failed in phase vae: ValueError: no" in text


@pytest.mark.parametrize(
    ("states", "said"),
    [(("done", "done"), "done"), (("preempted", "done"), "preempted"), (("running", "done"), "stopped without a word")],
)
def test_a_run_that_is_over(
    states: tuple[str, str], said: str, attempt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_beats(attempt, *(beat(i, state=state, pid=2**22 + 1) for i, state in enumerate(states)))
    assert f"attempt 0: {said}" in shown(capsys, attempt.parents[1])


def test_cancel_ends_the_launcher_and_not_another_process_of_its_id(
    attempt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as launcher:
        record_launch(attempt, Launched("torchrun", HERE, launcher.pid, 1))
        assert main(["cancel", str(run)]) == 0
        assert "nothing works on" in capsys.readouterr().out
        assert launcher.poll() is None
        record_launch(attempt, Launched("torchrun", HERE, launcher.pid, processes.start_ticks(launcher.pid)))
        assert main(["cancel", str(run)]) == 0
        assert capsys.readouterr().out == "attempt 0 is ended\n"
        assert launcher.wait() == -15
    write_beats(attempt, beat(host="n7"))
    assert main(["cancel", str(run)]) == 1
    assert capsys.readouterr().out == "attempt 0 runs on n7: cancel it there\n"


def test_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 2
    assert main(["cancel", str(tmp_path)]) == 2
    assert "is not a run's folder" in capsys.readouterr().err


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """squeue has forgotten the job; scontrol too, unless a file is there; sacct knows."""
    folder = tmp_path / "bin"
    folder.mkdir()
    said = {
        "squeue": "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1",
        "scontrol": f"[ -e {tmp_path}/known ] || exit 1\n"
        "echo 'JobId=9 ArrayJobId=7 ArrayTaskId=2 JobName=x JobState=FAILED Reason=None NodeList=n1 ExitCode=75:0'",
        "sacct": "echo '7_2|CANCELLED by 0|n[1-2]|0:15'",
    }
    for name, script in said.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return tmp_path


def test_who_is_asked_and_who_answers(fake_slurm: Path) -> None:
    (by_sacct,) = job_states("7")
    assert (by_sacct.job, by_sacct.state, by_sacct.nodes, by_sacct.exit_code) == ("7_2", "CANCELLED", "n[1-2]", 143)
    assert (by_sacct.source, by_sacct.over) == ("sacct", True)
    (fake_slurm / "known").touch()
    (by_scontrol,) = job_states("7")
    assert (by_scontrol.source, by_scontrol.job, by_scontrol.exit_code) == ("scontrol", "7_2", 75)
    assert exit_code([by_scontrol]) == 75
    assert exit_code([replace(by_scontrol, state="COMPLETED", exit_code=0)]) == 0
    assert exit_code([replace(by_scontrol, state="TIMEOUT", exit_code=0)]) == 1
    assert exit_code([]) == 1
    assert [_code(text) for text in ("0:0", "2:0", "0:9")] == [0, 2, 137]


def test_a_job_is_asked_once(attempt: Path) -> None:
    run = attempt.parents[1]
    for number, job in enumerate(("7", "7", "7_2", "8", "9_1")):
        (run / f"attempts/{number}").mkdir(exist_ok=True)
        record_launch(run / f"attempts/{number}", Launched("slurm", job=job))
    assert jobs_of(read_attempts(run)) == ["7", "8", "9_1"]


def test_a_queued_job_is_not_resumed_over(attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho '7|PENDING||Priority'\n")
    record_launch(attempt, Launched("slurm", job="7"))
    run = attempt.parents[1]
    assert main(["generate", "--resume", str(run)]) == 2
    assert f"job 7 is PENDING: opensora-launch cancel {run} ends it" in capsys.readouterr().err
    assert "job 7: PENDING (Priority), says squeue" in shown(capsys, run)
