"""The queue of batches: each is taken once, and again only from the dead."""

import json
import os
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opensora_launch.telemetry.stall import Beat
from opensora_launch.worker.queue import STALE_S, Owner, Queue
from tests.worker.plans import video

BATCHES = [[video(f"000{i}_0")] for i in range(3)]
ALIVE = Beat(0, socket.gethostname(), os.getpid(), 0.0, "running", "denoise")


def beat(run: Path, attempt: str, last: Beat) -> None:
    folder = run / "attempts" / attempt / "heartbeat"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{last.rank}.json").write_text(json.dumps(asdict(last)))


def queue(run: Path, attempt: str, rank: int = 0, job: str = "") -> Queue:
    return Queue(run, BATCHES, Owner(attempt, rank, job))


def finish(run: Path, index: int) -> None:
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / f"{BATCHES[index][0].name}.json").touch()


def test_groups_and_jobs_share_the_batches(tmp_path: Path) -> None:
    for rank in (0, 2):
        beat(tmp_path, "0", replace(ALIVE, rank=rank, time_s=time.time()))
    beat(tmp_path, "1", replace(ALIVE, time_s=time.time()))
    one, two, other_job = queue(tmp_path, "0"), queue(tmp_path, "0", rank=2), queue(tmp_path, "1")
    assert (one.take(), two.take(), other_job.take()) == (0, 1, 2)
    assert (one.take(), two.take(), other_job.take()) == (None, None, None)


def test_what_is_finished_is_not_taken(tmp_path: Path) -> None:
    finish(tmp_path, 0)
    assert queue(tmp_path, "0").take() == 1


@pytest.mark.parametrize(
    ("last", "taken"),
    [
        (replace(ALIVE, time_s=time.time() + 3600), None),
        (replace(ALIVE, time_s=time.time() + 3600, host="elsewhere"), None),
        (replace(ALIVE, time_s=time.time() + 3600, state="failed"), 0),
        (replace(ALIVE, time_s=time.time() + 3600, state="preempted"), 0),
        (replace(ALIVE, time_s=time.time() + 3600, pid=2**22 + 1), 0),  # more than any process id
        (replace(ALIVE, time_s=time.time() - STALE_S - 1, host="elsewhere"), 0),
    ],
)
def test_only_the_dead_are_inherited(last: Beat, taken: int | None, tmp_path: Path) -> None:
    beat(tmp_path, "0", last)
    finish(tmp_path, 1)
    finish(tmp_path, 2)
    assert queue(tmp_path, "0").take() == 0
    assert queue(tmp_path, "1").take() == taken
    assert queue(tmp_path, "2").take() == (None if taken is None else 0)  # attempt 1 has no heartbeat: dead


def test_a_job_inherits_from_its_own_earlier_start(tmp_path: Path) -> None:
    beat(tmp_path, "0", replace(ALIVE, time_s=time.time(), host="elsewhere"))
    assert queue(tmp_path, "0", job="slurm 7").take() == 0
    assert queue(tmp_path, "1", job="slurm 8").take() == 1
    assert queue(tmp_path, "2", job="slurm 7").take() == 0


def test_two_heirs_are_one_too_many(tmp_path: Path) -> None:
    queue(tmp_path, "0").take()
    beat(tmp_path, "1", replace(ALIVE, time_s=time.time()))
    assert queue(tmp_path, "1").take() == 0
    assert queue(tmp_path, "2").take() == 1
