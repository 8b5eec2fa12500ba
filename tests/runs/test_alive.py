"""Which ranks are alive: by the process on this host, by a heartbeat that moves on others."""

import json
import os
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opensora_launch.machine import processes
from opensora_launch.runs import alive
from opensora_launch.runs.alive import CLOCKS_APART_S, find_alive, is_process_gone
from opensora_launch.telemetry.stall import Beat

HERE = Beat(0, socket.gethostname(), os.getpid(), 0.0, "running", "denoise", started=processes.start_ticks(os.getpid()))
THERE = replace(HERE, host="elsewhere")


@pytest.mark.parametrize("age_s", [0.0, 3600.0, -3600.0, 2 * CLOCKS_APART_S])
def test_on_this_host_the_process_tells_whatever_the_clock_says(age_s: float) -> None:
    written = replace(HERE, time_s=time.time() - age_s)
    beats = {"it": written, "another": replace(written, started=1), "none": replace(written, pid=2**22 + 1)}
    assert find_alive({Path(name): beat for name, beat in beats.items()}, set()) == {Path("it")}
    assert [is_process_gone(beat) for beat in beats.values()] == [False, True, True]


def test_a_heartbeat_of_an_older_version_must_be_recent() -> None:
    """It does not tell when its process began: another one may have its id now."""
    old = replace(HERE, started=0, time_s=time.time() - 60)
    assert find_alive({Path("old"): old, Path("new"): replace(old, time_s=time.time())}, set()) == {Path("new")}


@pytest.mark.parametrize("age_s", [60.0, 3600.0, -3600.0])
def test_a_clock_that_differs_makes_no_rank_dead(age_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat of another host is alive if it moves, and dead if it does not for a while."""
    monkeypatch.setattr(alive, "ALIVE_S", 0.5)
    seen = replace(THERE, time_s=time.time() - age_s)
    later = {"moves": seen.time_s + 0.5, "stands": seen.time_s, "ended": seen.time_s}
    for name, time_s in later.items():
        (tmp_path / name).write_text(json.dumps(asdict(replace(seen, time_s=time_s))))
    found = find_alive({tmp_path / name: seen for name in later}, {tmp_path / "ended"})
    assert found == {tmp_path / "moves"}


def test_nobody_waits_for_what_cannot_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alive, "ALIVE_S", 1e9)  # a wait would not end
    beats = {
        "recent": replace(THERE, time_s=time.time()),
        "done": replace(THERE, state="done"),
        "old": replace(THERE, time_s=time.time() - 2 * CLOCKS_APART_S),
    }
    assert find_alive({Path(name): beat for name, beat in beats.items()}, set()) >= {Path("recent")}
    monkeypatch.undo()
    assert find_alive({Path(name): beat for name, beat in beats.items()}, set()) == {Path("recent")}
