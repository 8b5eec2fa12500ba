"""Jobs that are asked to stop, preempted, killed: each goes on from where it was to the same video, or says its end."""

import json
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import LONG, Cluster, Run, assert_same, follow, run_of, submit, wait_for, words_of

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def limited(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """It has two minutes, is asked to stop before their end, and may start once more. Other tests work meanwhile."""
    here = tmp_path_factory.mktemp("limited")
    # Large enough that the steps do not end within the two starts.
    size = ("video.height_px=128", "video.width_px=192", "video.num_frames=65")
    limits = ("launcher.slurm.time=2", "launcher.slurm.signal_lead_s=20", "launcher.slurm.max_restarts=1")
    return submit(
        cluster, here, "--prompt", "x", "sampling.num_steps=10000", "launcher.slurm.nodelist=n3", *limits, *size
    )


def test_requeued_by_the_signal(cluster: Cluster, long_picture: bytes, limited: Run, tmp_path: Path) -> None:
    """The last task of an array, whose job id is the whole array's, and a job of torchrun, which has 1 for all ends."""
    folders = [tmp_path / "array", tmp_path / "torchrun"]
    for folder in folders:
        folder.mkdir()
    array = submit(cluster, folders[0], *LONG, "--prompt", "waves", "launcher.slurm.array=2")
    by_torchrun = submit(cluster, folders[1], *LONG, "launcher.slurm.starter=torchrun")
    array.wait_for_step(20, attempt=1)
    cluster.run("scancel", "--batch", "--signal=USR1", f"{array.job}_1")
    by_torchrun.wait_for_step(20)
    cluster.run("scancel", "--batch", "--signal=USR1", by_torchrun.job)
    for job, run in ((f"{array.job}_0", array), (f"{array.job}_1", array), (by_torchrun.job, by_torchrun)):
        assert cluster.wait(job) == "COMPLETED", run.log()
    assert [array.picture(name) for name in ("0000_0", "0001_0")] == [long_picture] * 2
    assert by_torchrun.picture() == long_picture
    assert "is stored after step" in array.log(1)
    assert [f"requeued after exit code {code}" in array.log() for code in (75, 1)] == [True, False]
    assert "requeued after exit code 75" in by_torchrun.log()
    assert re.search(r"resumes after step \d\d", by_torchrun.log(1))
    jobs = [json.loads((array.folder / f"attempts/{k}/launcher.json").read_text())["job"] for k in range(3)]
    assert jobs == [f"{array.job}_{task}" for task in (0, 1, 1)]
    for name in ("command.txt", "environment.json"):
        texts = {(array.folder / f"attempts/{k}" / name).read_text() for k in range(3)}
        assert len(texts) == 1


def test_requeued_by_hand_and_by_a_partition_that_goes_first(
    cluster: Cluster, long_picture: bytes, tmp_path: Path
) -> None:
    """Who has followed the first of the two jobs leaves it alone."""
    other = tmp_path / "low"
    other.mkdir()
    followed = follow(cluster, tmp_path, *words_of(*LONG))
    followed.run.wait_for_step(15)
    followed.process.send_signal(signal.SIGINT)
    code, said = followed.end()
    assert code == 130
    assert f"job {followed.run.job} continues\n" in said
    assert f"cancel: opensora-launch cancel {followed.run.folder}\n" in said
    assert cluster.run("scontrol", "requeue", followed.run.job).returncode == 0
    low = submit(cluster, other, *LONG, "launcher.slurm.nodelist=n4", "launcher.slurm.exclusive=true")
    low.wait_for_step(15)
    high = cluster.run(
        "sbatch", "--parsable", "-p", "high", "-w", "n4", "--exclusive", "-o", "/dev/null", "--wrap", "true"
    )
    for run in (followed.run, low):
        assert cluster.wait(run.job) == "COMPLETED", run.log()
        assert run.picture() == long_picture
        assert re.search(r"resumes after step \d\d", run.log(1))
    assert cluster.state(high.stdout.strip()) == "COMPLETED"
    assert "attempt 1: done" in low.status()


def test_a_job_that_may_not_be_requeued_ends_with_75(cluster: Cluster, long_picture: bytes, tmp_path: Path) -> None:
    """--resume goes on from there, on two nodes."""
    followed = follow(cluster, tmp_path, *words_of(*LONG, "launcher.slurm.requeue=false"))
    run = followed.run
    run.wait_for_step(20)
    cluster.run("scancel", "--batch", "--signal=USR1", run.job)
    code, said = followed.end()
    assert code == 75
    assert re.search(r"^0000_0 is stored after step \d\d+$", said, re.MULTILINE)
    assert "attempt 0: preempted\n" in run.status()
    more = ["generate", "--resume", str(run.folder), "topology.nodes=2", "follow=true", "layout.dp=1"]
    done = cluster.opensora(*more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + run.log(1)
    assert re.search(r"resumes after step \d\d", run.log(1))
    assert_same(run.picture(), long_picture)


def test_a_job_whose_rank_is_killed(cluster: Cluster, long_picture: bytes, tmp_path: Path) -> None:
    """It has failed, whatever the last heartbeats say; tried again at once elsewhere, it goes on to the same video."""
    followed = follow(cluster, tmp_path, *words_of(*LONG, "launcher.slurm.nodelist=n1"))
    run = followed.run
    run.wait_for_step(15)
    run.kill_rank(0)
    code, said = followed.end()
    assert code == 1
    assert f"job {run.job}: FAILED n1" in said
    assert "1 of 1 videos is missing" in said
    status = run.status()
    assert "attempt 0: over, its job is FAILED" in status
    assert "rank 0 on n1: lost" in status
    again = ["generate", "--resume", str(run.folder), "launcher.slurm.nodelist=n2", "follow=true"]
    done = cluster.opensora(*again, cwd=tmp_path)
    assert done.returncode == 0, done.stderr + run.log(1)
    assert re.search(r"resumes after step \d\d", run.log(1))
    assert run.picture() == long_picture


def test_a_task_of_an_array_that_is_killed_and_an_array_that_is_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    """What one task had taken is made by another, when its heartbeat is old."""
    folders = [tmp_path / "killed", tmp_path / "cancelled"]
    for folder in folders:
        folder.mkdir()
    prompts = [word for i in range(3) for word in ("--prompt", f"prompt {i}")]
    array = submit(cluster, folders[0], *prompts, "sampling.num_steps=150", "launcher.slurm.array=2")
    array.wait_for_step(5)
    array.kill_rank(0)
    cancelled = submit(cluster, folders[1], *prompts, "sampling.num_steps=9999", "launcher.slurm.array=2")
    cancelled.wait_for_step(5, attempt=1)
    works = r"rank 0 on n\d: running, denoise, video 1 of 3, step \d+ of 9999"
    wait_for(lambda: bool(re.search(works, cancelled.status())))  # beats come by seconds
    said = cancelled.status()
    assert re.search(rf"job {cancelled.job}_1: RUNNING on n\d", said)
    assert re.search(works, said)
    wait_for(lambda: " left\n" in cancelled.status())
    ended = cluster.opensora("cancel", str(cancelled.folder), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"job {cancelled.job} is cancelled\n")
    assert [cluster.wait(f"{cancelled.job}_{task}") for task in range(2)] == ["CANCELLED"] * 2
    wait_for(lambda: not cancelled.processes())
    assert [cluster.wait(f"{array.job}_{task}") for task in range(2)] == ["FAILED", "COMPLETED"], array.log()
    assert sorted(p.name for p in (array.folder / "samples").glob("*.json")) == [f"000{i}_0.json" for i in range(3)]
    claims = [json.loads(p.read_text())["attempt"] for p in (array.folder / "claims").glob("*.1.json")]
    assert claims == ["1"]


def test_a_job_that_a_task_of_an_array_submits(cluster: Cluster, tmp_path: Path) -> None:
    """It goes by its own number, and to cancel it leaves the array alone."""
    generate = shlex.join(
        [sys.executable, "-m", "opensora_launch.cli", *words_of("--prompt", "x", "sampling.num_steps=9999")]
    )
    (tmp_path / "outer.sh").write_text(f"#!/bin/bash\nsrun {generate} >said\nsleep 600\n")
    outer = cluster.run("sbatch", "--parsable", "--array=3", "-o", "/dev/null", "outer.sh", cwd=tmp_path).stdout.strip()
    said = tmp_path / "said"
    wait_for(lambda: said.exists() and "cancel: " in said.read_text())
    run = run_of(cluster, said.read_text())
    run.wait_for_step(1)
    assert json.loads((run.folder / "attempts/0/launcher.json").read_text())["job"] == run.job
    ended = cluster.opensora("cancel", str(run.folder), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (0, f"job {run.job} is cancelled\n")
    assert cluster.wait(run.job) == "CANCELLED"
    assert cluster.state(f"{outer}_3") == "RUNNING"
    cluster.run("scancel", outer)


def test_a_node_that_is_lost(cluster: Cluster, long_picture: bytes, tmp_path: Path) -> None:
    followed = follow(cluster, tmp_path, *words_of(*LONG, "layout.dp=1", "launcher.slurm.exclude=n3", nodes=2))
    run = followed.run
    run.wait_for_step(20)
    lost = json.loads((run.folder / "attempts/0/heartbeat/rank1.json").read_text())["host"]
    cluster.node("kill-node", lost)
    try:
        assert cluster.wait(run.job) == "COMPLETED", run.log(0) + run.log(1)
    finally:
        cluster.node("start-node", lost)
    code, said = followed.end()
    assert code == 0, said
    assert len(re.findall(rf"^job {run.job}: requeued: lost: {lost}.*; log: {run.folder}/.*job.log$", said, re.M)) == 1
    hosts = {json.loads(p.read_text())["host"] for p in (run.folder / "attempts/1/heartbeat").glob("rank*.json")}
    assert len(hosts) == 2
    assert lost not in hosts
    assert re.search(r"resumes after step \d\d", run.log(1))
    assert_same(run.picture(), long_picture)


@pytest.mark.timeout(600)
def test_a_time_limit_and_the_most_restarts(cluster: Cluster, limited: Run) -> None:
    """Slurm's own signal: stored and requeued; the second time the job has had its restarts, and ends with 75."""
    assert cluster.wait(limited.job) == "FAILED", limited.log()
    shown = cluster.run("scontrol", "--oneliner", "show", "job", limited.job).stdout
    assert "ExitCode=75:0" in shown
    log = limited.log()
    assert log.count("requeued after exit code 75") == 1
    assert "this job was restarted 1 times and is not restarted again" in log
    steps = [int(n) for k in (0, 1) for n in re.findall(r"rank 0 .* is stored after step (\d+)", limited.log(k))]
    assert steps == sorted(steps)
    assert len(steps) == 2
    assert f"resumes after step {steps[0]}" in limited.log(1)
