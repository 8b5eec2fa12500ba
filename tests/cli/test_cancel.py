"""`cancel` of runs without a job: the launcher, the step of an allocation, ranks on other hosts."""

import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.machine import processes
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.state import Launched, record_launch
from tests.cli.runs import beat, write_beats

HERE = socket.gethostname()


@pytest.fixture
def attempt() -> Path:
    return prepare_attempt(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2)).path


def test_cancel_ends_the_launcher_and_not_another_process_of_its_id(
    attempt: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = attempt.parents[1]
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as launcher:
        record_launch(AttemptDir(attempt), Launched("torchrun", HERE, launcher.pid, 1))
        assert main(["cancel", str(run)]) == 0
        assert "nothing works on" in capsys.readouterr().out
        assert launcher.poll() is None
        record_launch(
            AttemptDir(attempt), Launched("torchrun", HERE, launcher.pid, processes.start_ticks(launcher.pid))
        )
        assert main(["cancel", str(run)]) == 0
        assert capsys.readouterr().out == "attempt 0 is stopped\n"
        assert launcher.wait() == -15
    write_beats(attempt, beat(host="n7"))
    assert main(["cancel", str(run)]) == 1
    assert capsys.readouterr().out == "attempt 0 runs on n7: cancel it there\n"


def test_cancel_ends_the_step_of_an_allocation_from_any_host(
    attempt: Path, fake_slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its ranks are on other hosts, and so may be its launcher."""
    run, asked = attempt.parents[1], fake_slurm / "asked"
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\nprintf '12.0|bash\\n12.3|opensora-1\\n'\n")
    scancel = fake_slurm / "bin" / "scancel"
    scancel.write_text(f'#!/bin/sh\necho "$@" >>{asked}\n')
    scancel.chmod(0o755)
    write_beats(attempt, beat(host="n1"), beat(1, host="n2"))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as launcher:
        here = Launched(
            "srun", HERE, launcher.pid, processes.start_ticks(launcher.pid), allocation="12", step="opensora-1"
        )
        for launched in (replace(here, host="n9"), here):
            record_launch(AttemptDir(attempt), launched)
            assert main(["cancel", str(run)]) == 0
            assert capsys.readouterr().out == "attempt 0 is stopped, step 12.3 is cancelled\n"
            assert asked.read_text() == "12.3\n"
            asked.unlink()
        assert launcher.wait() == -15
    record_launch(AttemptDir(attempt), replace(here, host="n9"))
    scancel.write_text("#!/bin/sh\necho 'scancel: error: Access denied' >&2; exit 1\n")
    assert main(["cancel", str(run)]) == 1
    assert "Access denied" in capsys.readouterr().out
    (fake_slurm / "bin" / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: down' >&2; exit 1\n")
    assert main(["cancel", str(run)]) == 1
    assert "a step of job 12 may still run: Slurm cannot be asked (squeue: " in capsys.readouterr().out
