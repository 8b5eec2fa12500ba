"""Sweeps on a real Slurm: a job a run that is waited for, and all runs as steps of one allocation."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensora_launch.report.compare import read_either
from opensora_launch.report.wording import message
from opensora_launch.rundir import SweepDir
from opensora_launch.runs.sweep_state import read_sweep
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.stall import Beat
from tests.slurm.conftest import TINY, Cluster, wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
CPU = tuple(word for word in TINY if word != "launcher=slurm")
SHORT = ("sampling.num_steps=2", "repeats=1", "warmup=0")


def hosts(sweep: Path) -> list[list[str]]:
    """Of each run that counts, in the order of the points."""
    runs = [done.run for done in sorted(read_sweep(SweepDir(sweep)).done, key=lambda d: d.point)]
    return [read_either(sweep / run)["machine"]["hosts"] for run in runs]


@pytest.mark.parametrize("word", ["launcher=slurm", "launcher.kind=slurm"])
def test_a_job_a_run(cluster: Cluster, tmp_path: Path, word: str) -> None:
    done = cluster.opensora("bench", *CPU, word, *SHORT, "gpus=[1,2x1]", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    report = read_either(sweep)
    assert [row["gpus"] for row in report["table"]] == [1, 2]
    assert [len(names) for names in hosts(sweep)] == [1, 2]
    assert message("nodes_unwatched") in report["unknown"]
    jobs = {json.loads(p.read_text())["job"] for p in sweep.glob("*/attempts/0/launcher.json")}
    assert len(jobs) == 2


def test_one_allocation_holds_all_runs(cluster: Cluster, tmp_path: Path) -> None:
    """On one rank, on two of a node, and on two nodes: all of them begin at the allocation's first node."""
    words = ["salloc", "--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10", sys.executable, "-m"]
    done = cluster.run(*words, "opensora_launch.cli", "bench", *CPU, *SHORT, "gpus=[1,2,2x2]", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (sweep,) = (tmp_path / "runs").iterdir()
    report = read_either(sweep)
    assert [row["gpus"] for row in report["table"]] == [1, 2, 4]
    assert not [line for line in report["unknown"] if line["code"] == "other_work"]
    one, two, four = hosts(sweep)
    assert len(four) == 2
    assert one == two == four[:1]
    launched = [json.loads(p.read_text()) for p in sweep.glob("*/attempts/0/launcher.json")]
    assert {(each["kind"], each["job"]) for each in launched} == {("srun", "")}
    too_many = cluster.run(*words, "opensora_launch.cli", "bench", *CPU, *SHORT, "gpus=[3x1,9]", cwd=tmp_path)
    assert too_many.returncode == 2
    assert "topology.nodes=3, but the allocation has 2" in too_many.stderr
    assert "topology.gpus_per_node=9 ranks need a CPU each, but the allocation has 2 per node" in too_many.stderr


@pytest.fixture
def running(cluster: Cluster, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A long run of two ranks on two nodes, as a step; at work."""
    words = ["salloc", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10", sys.executable, "-m"]
    words += ["opensora_launch.cli", "generate", *CPU, "launcher=srun", "topology.nodes=2", "topology.gpus_per_node=1"]
    words += ["layout.dp=1", "sampling.num_steps=4000", "--prompt", "waves"]
    with (tmp_path / "said").open("w") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=cluster.env, stdout=out, stderr=out, text=True)
        wait_for(lambda: step_of(tmp_path, 1) > 3)
        yield process, next((tmp_path / "runs").iterdir())
        process.kill()
        process.wait()


def step_of(folder: Path, rank: int) -> int:
    """By its last heartbeat."""
    beats = [read_json(file, Beat) for file in folder.glob(f"runs/*/attempts/0/heartbeat/rank{rank}.json")]
    return next((beat.step or 0 for beat in beats if beat), 0)


def ranks_of(run: Path) -> dict[int, int]:
    """Processes of this machine, whatever node they are on, by rank: the workers that have the run's folder."""
    attempt, found = os.fsencode(run / "attempts/0"), dict[int, int]()
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if attempt in words and b"opensora_launch.worker" in words and not words[0].endswith(b"srun"):
                variables = (entry / "environ").read_bytes().split(b"\0")
                (rank,) = (int(v.partition(b"=")[2]) for v in variables if v.startswith(b"SLURM_PROCID="))
                found[rank] = int(entry.name)
        except (OSError, ValueError):
            continue
    return found


def test_a_rank_of_a_step_that_is_killed(running: tuple[subprocess.Popen[str], Path]) -> None:
    process, run = running
    os.kill(ranks_of(run)[1], signal.SIGKILL)
    assert process.wait(300) == 1
    assert json.loads((run / "attempts/0/error.json").read_text())["rank"] == 1
    said = (run.parents[1] / "said").read_text()
    assert re.search(r"error: rank 1 on host \S+ \(pid \d+\) was killed by SIGKILL.* step \d+ of 4000", said), said
    wait_for(lambda: not ranks_of(run))


def test_a_launcher_that_is_ended_leaves_no_rank(running: tuple[subprocess.Popen[str], Path]) -> None:
    process, run = running
    os.kill(json.loads((run / "attempts/0/launcher.json").read_text())["pid"], signal.SIGTERM)
    assert process.wait(300) == 128 + signal.SIGTERM
    wait_for(lambda: not ranks_of(run))


def test_a_step_is_cancelled_from_another_host(
    cluster: Cluster, running: tuple[subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    process, run = running
    record = run / "attempts/0/launcher.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"host": "another"}))
    done = cluster.opensora("cancel", str(run), cwd=tmp_path)
    assert re.fullmatch(r"attempt 0 is stopped, step \d+\.\d+ is cancelled\n", done.stdout), done.stderr
    assert done.returncode == 0
    assert process.wait(300) == 1
    wait_for(lambda: not ranks_of(run))
