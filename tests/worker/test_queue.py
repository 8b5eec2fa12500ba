"""The queue of batches: each is taken once, and again only from the dead."""

import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opensora_launch.rundir import RunDir
from opensora_launch.runs.alive import ALIVE_S, CLOCKS_APART_S
from opensora_launch.runs.finished_videos import record_failed
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.moves import WATCHED_S
from opensora_launch.telemetry.stall import Beat
from opensora_launch.worker.queue import WAIT, Owner, Queue
from tests.samples import finish_video
from tests.telemetry.hand_clock import HandClock, clock  # noqa: F401 a fixture
from tests.worker.plans import video

BATCHES = [[video(f"000{i}_0")] for i in range(3)]
HERE, OURS = socket.gethostname(), os.getpid()
ALIVE = Beat(0, HERE, OURS, 0.0, "running", "denoise")


def beat(run: Path, attempt: str, last: Beat) -> None:
    folder = run / "attempts" / attempt / "heartbeat"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rank{last.rank}.json").write_text(json.dumps(asdict(last)))


def queue(run: Path, attempt: str, rank: int = 0, job: str = "", host: str = HERE, pid: int = OURS) -> Queue:
    return Queue(RunDir(run), BATCHES, Owner(attempt, rank, job, host, pid))


def finish(run: Path, index: int) -> None:
    finish_video(run, BATCHES[index][0].name)


def settled(asked: Queue, within_s: float = 120.0) -> int | None:
    """What `take` says once it is certain; other owners' hearts beat meanwhile."""
    deadline = time.monotonic() + within_s
    while (found := asked.take()) == WAIT:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_claims_of_names_that_look_alike_are_told_apart(tmp_path: Path, clock: HandClock) -> None:  # noqa: F811
    """A name by --name may begin with another one and a dot, end in a number, and hold what a pattern would."""
    names = ["a", "a.0", "a. b", "[a]", "a.0.0"]
    batches = [[video(name)] for name in names]
    first, second = (Queue(RunDir(tmp_path), batches, Owner("0", rank, "", HERE, OURS)) for rank in (0, 1))
    for rank in (0, 1):
        beat(tmp_path, "0", replace(ALIVE, rank=rank))
    taken = [asked.take() for asked in (first, second, first, second, first)]
    assert taken == [0, 1, 2, 3, 4]
    assert [first.take(), second.take()] == [None, None]
    assert sorted(p.name for p in (tmp_path / "claims").iterdir()) == sorted(f"{name}.0.json" for name in names)


def test_a_claim_that_is_being_written_is_waited_for(tmp_path: Path, clock: HandClock) -> None:  # noqa: F811
    """Where a file system has no links, a claim is there before its owner stands in it."""
    claim = tmp_path / "claims/0000_0.0.json"
    claim.parent.mkdir()
    claim.touch()
    asked = queue(tmp_path, "0")
    assert [asked.take(), asked.take(), asked.take()] == [1, 2, WAIT]
    for _ in range(int(ALIVE_S) - 1):
        clock.now += 1
        assert asked.take() == WAIT
    clock.now += 1
    assert asked.take() == 0


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[None]:
    """Ranks 0 and 2 of attempt 0 and rank 0 of attempt 1 live."""
    paths = [tmp_path / f"attempts/{attempt}/heartbeat/rank{rank}.json" for attempt, rank in ((0, 0), (0, 2), (1, 0))]
    hearts = [Heartbeat(p, rank=int(p.stem[-1]), host=HERE, interval_s=0.1) for p in paths]
    for heart in hearts:
        heart.start()
    yield
    for heart in hearts:
        heart.close()


@pytest.mark.usefixtures("alive")
def test_groups_and_jobs_share_the_batches(tmp_path: Path) -> None:
    one, two, other_job = queue(tmp_path, "0"), queue(tmp_path, "0", rank=2), queue(tmp_path, "1")
    assert (one.take(), two.take()) == (0, 1)
    assert (one.take(), two.take()) == (2, None)  # of one's own attempt it is certain
    assert other_job.take() == WAIT
    assert settled(other_job) is None
    assert settled(one) is None


def test_what_is_finished_or_failed_is_not_taken(tmp_path: Path) -> None:
    finish(tmp_path, 0)
    record_failed(RunDir(tmp_path), {BATCHES[1][0].name: "its reference cannot be read"})
    assert queue(tmp_path, "0").take() == 2


@pytest.mark.parametrize(
    "last",
    [
        replace(ALIVE, state="failed"),
        replace(ALIVE, state="preempted"),
        replace(ALIVE, pid=2**22 + 1),  # more than any process id
        replace(ALIVE, host="elsewhere", time_s=-CLOCKS_APART_S - 1),
    ],
)
def test_the_dead_are_inherited_at_once(last: Beat, tmp_path: Path) -> None:
    beat(tmp_path, "0", replace(last, time_s=time.time() + last.time_s))
    finish(tmp_path, 1)
    finish(tmp_path, 2)
    assert queue(tmp_path, "0", host=last.host, pid=last.pid).take() == 0
    assert queue(tmp_path, "1").take() == 0
    assert queue(tmp_path, "2").take() == 0  # attempt 1 has no heartbeat: dead


@pytest.mark.parametrize("age_s", [1.0, 3600.0, -3600.0])
def test_a_heartbeat_of_another_host_is_watched(age_s: float, tmp_path: Path, clock: HandClock) -> None:  # noqa: F811
    """Its node was lost, a moment ago or long ago, or has another clock: it is watched until it moves or is dead."""
    beat(tmp_path, "0", replace(ALIVE, host="elsewhere", time_s=time.time() - age_s))
    finish(tmp_path, 1)
    finish(tmp_path, 2)
    assert queue(tmp_path, "0", host="elsewhere").take() == 0
    heir = queue(tmp_path, "1")
    started = clock.now
    while (found := heir.take()) == WAIT:
        clock.now += 0.5
    assert (found, clock.now - started) == (0, ALIVE_S)


def test_an_old_look_says_nothing_of_now(tmp_path: Path, clock: HandClock) -> None:  # noqa: F811
    """A heart that beat since the last batch was taken may have stopped since."""
    beat(tmp_path, "0", replace(ALIVE, host="elsewhere", time_s=time.time() - 3))
    owner, other = queue(tmp_path, "0", host="elsewhere"), queue(tmp_path, "1")
    assert owner.take() == 0
    assert other.take() == 1
    clock.now += WATCHED_S + 1
    beat(tmp_path, "0", replace(ALIVE, host="elsewhere", time_s=time.time() - 2))
    finish(tmp_path, 1)
    finish(tmp_path, 2)
    assert other.take() == WAIT
    beat(tmp_path, "0", replace(ALIVE, host="elsewhere", time_s=time.time()))
    assert other.take() is None


def test_a_job_inherits_from_its_own_earlier_start(tmp_path: Path) -> None:
    beat(tmp_path, "0", replace(ALIVE, time_s=time.time(), host="elsewhere"))
    assert queue(tmp_path, "0", job="slurm 7", host="elsewhere").take() == 0
    assert queue(tmp_path, "1", job="slurm 8").take() == 1
    assert queue(tmp_path, "2", job="slurm 7").take() == 0


def test_two_heirs_are_one_too_many(tmp_path: Path) -> None:
    queue(tmp_path, "0").take()
    beat(tmp_path, "1", replace(ALIVE, time_s=time.time()))
    assert queue(tmp_path, "1").take() == 0
    assert queue(tmp_path, "2").take() == 1


def test_claims_outlive_the_attempts_that_made_them(tmp_path: Path) -> None:
    """Somebody deletes attempts/ for its size: the next attempt is number 0 again, and another one."""
    beat(tmp_path, "0", replace(ALIVE, time_s=time.time()))
    assert queue(tmp_path, "0").take() == 0
    shutil.rmtree(tmp_path / "attempts")
    beat(tmp_path, "0", replace(ALIVE, time_s=time.time(), pid=OURS + 1))
    assert queue(tmp_path, "0", pid=OURS + 1).take() == 0
