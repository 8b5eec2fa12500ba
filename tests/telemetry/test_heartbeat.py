"""The thread, its file, and when it cries."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.telemetry.heartbeat import Heartbeat, read_heartbeats
from opensora_launch.telemetry.stall import Position, Verdict
from tests.telemetry.hand_clock import HandClock, clock  # noqa: F401 a fixture

CONTRACT = {
    "rank", "host", "pid", "time_s", "state", "phase", "video", "step", "steps", "videos_done", "videos",
    "collective", "sequence", "progress_s",
}  # fmt: skip


def heartbeat(tmp_path: Path, rank: int = 0, **options: Any) -> Heartbeat:
    """A rank in a phase in which the CPU time of this process does not count as progress."""
    beat = Heartbeat(tmp_path / "heartbeat" / f"rank{rank}.json", rank=rank, host="h", videos=3, **options)
    beat.phase = "denoise"
    return beat


def put(tmp_path: Path, rank: int, now: float, **fields: object) -> Heartbeat:
    """The file of another rank, written once."""
    other = heartbeat(tmp_path, rank)
    for name, value in fields.items():
        setattr(other, name, value)
    (tmp_path / "heartbeat").mkdir(exist_ok=True)
    other.write(other.beat(now))
    return other


def test_file_is_written_at_once_rewritten_and_closed(tmp_path: Path) -> None:
    beat = heartbeat(tmp_path, interval_s=0.02)
    beat.phase, beat.video, beat.step, beat.steps = "denoise", "0000_0", 3, 50
    others, before = set(threading.enumerate()), time.time()
    beat.start()
    file = tmp_path / "heartbeat/rank0.json"
    first = json.loads(file.read_text())
    assert first.keys() >= CONTRACT
    assert (first["phase"], first["step"], first["steps"], first["videos"]) == ("denoise", 3, 50, 3)
    assert first["state"] == "running"
    assert before - 0.01 <= first["time_s"] <= time.time() + 0.01
    deadline = time.monotonic() + 100
    while json.loads(file.read_text())["time_s"] == first["time_s"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.close("failed")
    last = json.loads(file.read_text())
    assert last["state"] == "failed"
    assert last["progress_s"] == first["progress_s"]
    assert set(threading.enumerate()) <= others, "nobody writes it any more"
    assert [p.name for p in file.parent.iterdir()] == ["rank0.json"]


def test_progress_is_any_change_but_time(tmp_path: Path) -> None:
    beat = heartbeat(tmp_path)
    now = beat.now()
    assert beat.beat(now).progress_s == now
    assert beat.beat(now + 1).progress_s == now
    for seconds, (name, value) in enumerate(
        [
            ("phase", "vae"),
            ("loaded_bytes", 1),
            ("step", 2),
            ("videos_done", 1),
            ("collective", Position("ring", (0, 1), 4)),
        ],
        start=2,
    ):
        setattr(beat, name, value)
        assert beat.beat(now + seconds).progress_s == now + seconds
        assert beat.beat(now + seconds + 0.5).progress_s == now + seconds


def test_reading_passes_over_what_cannot_be_read(tmp_path: Path) -> None:
    for rank in (10, 2):
        put(tmp_path, rank, 5.0, collective=Position("cfg", (2, 10), 7), inside=True)
    folder = tmp_path / "heartbeat"
    (folder / "rank3.json").write_text('{"rank": 3')
    (folder / "rank4.json").write_text("[]")
    beats = read_heartbeats(folder)
    assert [b.rank for b in beats] == [2, 10]
    assert (beats[0].ranks, beats[0].sequence, beats[0].collective, beats[0].inside) == ((2, 10), 7, "cfg", True)
    assert read_heartbeats(tmp_path / "none") == []


def stalled_at(tmp_path: Path, seconds: float, **mine: object) -> list[Verdict]:
    """What rank 0 is told `seconds` after it last moved; rank 1 computes and beats, but does not move."""
    found: list[Verdict] = []
    me = heartbeat(tmp_path, 0)
    me.collective, me.inside = Position("ulysses", (0, 1), 9), True
    for name, value in mine.items():
        setattr(me, name, value)
    me.watch(5.0, found.append)
    start = me.now()
    me.beat(start)
    other = put(tmp_path, 1, start - 1, step=4)
    other.write(other.beat(start + seconds))
    for later in (0.0, 0.5):
        me.check(me.beat(start + seconds + later))
    return found


def test_a_stall_is_told_once_and_not_too_early(tmp_path: Path) -> None:
    assert stalled_at(tmp_path, 3.9) == []
    (verdict,) = stalled_at(tmp_path, 5.1)
    assert verdict.rank == 1
    assert " is alive but has not moved for " in verdict.message


def compute() -> None:
    end = time.process_time() + 0.25
    while time.process_time() < end:
        pass


def test_a_main_thread_that_loads_or_encodes_moves(tmp_path: Path) -> None:
    """Text encoders are read and run in one call, which may take long; asleep in it, the rank does not move."""
    beat = heartbeat(tmp_path, 0)
    beat.phase = "text"
    beat.beat(10.0)
    compute()
    assert beat.beat(20.0).progress_s == 20.0
    assert beat.beat(30.0).progress_s == 20.0
    beat.phase = "denoise"
    beat.beat(40.0)
    compute()
    assert beat.beat(50.0).progress_s == 40.0


def test_outside_a_collective_nothing_is_a_stall(tmp_path: Path) -> None:
    assert stalled_at(tmp_path, 60, inside=False) == []


def test_a_device_inside_a_collective_counts_though_the_host_is_not(tmp_path: Path) -> None:
    (verdict,) = stalled_at(tmp_path, 6, inside=False, device_position=lambda: Position("ring", (0, 1), 3))
    assert verdict.rank == 1


@pytest.mark.parametrize("ahead_s", [0.0, 3600.0, -3600.0])
def test_waiting_for_a_rank_that_moves_is_no_stall(ahead_s: float, tmp_path: Path, clock: HandClock) -> None:  # noqa: F811
    """Whatever the clock of its host says."""
    found: list[Verdict] = []
    me = heartbeat(tmp_path, 0)
    me.collective, me.inside = Position("barrier", (0, 1), 1), True
    me.watch(5.0, found.append)
    start = me.now()
    me.beat(start)
    other = put(tmp_path, 1, start + ahead_s, step=1)
    for second in range(30):
        if second < 25:  # then it is silent
            other.step = second
            other.write(other.beat(start + ahead_s + second))
        clock.now += 1
        me.check(me.beat(start + second))
        assert not found or second > 25
    assert [(v.rank, " has been silent for " in v.message) for v in found] == [(1, True)]


def test_a_write_that_fails_is_remembered_and_tried_again(tmp_path: Path) -> None:
    beat = heartbeat(tmp_path)
    beat.write(beat.beat(beat.now()))
    (tmp_path / "heartbeat").mkdir()
    beat.write(beat.beat(beat.now()))
    (written,) = read_heartbeats(tmp_path / "heartbeat")
    assert written.rank == 0
    assert "No such file" in (written.problem or "")


def test_an_error_does_not_end_the_thread(tmp_path: Path) -> None:
    """The failure of a stalled rank cannot be recorded at first, and is tried again at the next beat."""
    told: list[Verdict] = []

    def record(verdict: Verdict) -> None:
        told.append(verdict)
        if len(told) == 1:
            raise OSError("No space left on device")

    put(tmp_path, 1, time.time() - 100)
    beat = heartbeat(tmp_path, interval_s=0.02)
    beat.collective, beat.inside = Position("ring", (0, 1), 1), True
    beat.watch(0.05, record)
    beat.start()
    deadline = time.monotonic() + 100
    while len(told) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.close("failed")
    assert [v.rank for v in told] == [1, 1]
    assert read_heartbeats(tmp_path / "heartbeat")[0].problem == "OSError: No space left on device"


def test_the_thread_itself_tells(tmp_path: Path) -> None:
    found: list[Verdict] = []
    me = heartbeat(tmp_path, 0, interval_s=0.02)
    put(tmp_path, 1, me.now(), step=4)
    me.collective, me.inside = Position("ulysses", (0, 1), 9), True
    me.watch(0.2, found.append)
    me.start()
    deadline = time.monotonic() + 100
    while not found and time.monotonic() < deadline:
        time.sleep(0.01)
    me.close()
    assert [v.rank for v in found] == [1]
