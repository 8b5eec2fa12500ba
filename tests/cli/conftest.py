"""A working directory of its own for each test, without a checkpoint and without GPUs."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensora_launch.cli import follow as following
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir
from tests.cli.followed import Says, started


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield tmp_path
    root = logging.getLogger()
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler]:  # of Hydra's --info
        root.removeHandler(handler)


@pytest.fixture
def attempt() -> AttemptDir:
    """The first start of job 7."""
    return started(prepare_attempt(["--prompt", "a", "model=tiny"], Machine("cpu", 2, 1, 1)))


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """Sets what a command of the fake Slurm prints from now on, or the error that it ends with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def say(command: str, *lines: str, error: str = "") -> None:
        text = "\n".join(lines)
        script = f"cat <<'END'\n{text}\nEND\n" if text else ""
        script += f"echo '{error}' >&2; exit 1\n" if error else ""
        (folder / command).write_text(f"#!/bin/sh\n{script}")
        (folder / command).chmod(0o755)

    for command in ("squeue", "scontrol", "sacct", "sinfo"):
        say(command, error="slurm_load_jobs error: Invalid job id specified")
    return say


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower looks again and again without a pause."""
    monkeypatch.setattr(following, "LOOK_S", 0.0)


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
