"""Whether a rank is alive: one answer for every command, and for the queue of batches.

On its own host, the process tells. On another host, its heartbeat moves or does not.
"""

import socket
import time
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from opensora_launch.machine import processes
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.stall import Beat

ALIVE_S = 30.0  # sixty heartbeats: a shared disk may show them late
CLOCKS_APART_S = 86_400.0  # the clocks of hosts that share a disk differ by less
_LOOK_S = 0.2


def is_process_gone(beat: Beat) -> bool:
    """Whether a rank of this host ended without a last heartbeat. Nothing is known about other hosts: False."""
    return beat.state == "running" and _is_here(beat) and not _is_process_there(beat)


def has_ended_well(beats: Sequence[Beat], ranks: int) -> bool:
    """Whether all ranks are done, and none of their processes is left on this host."""
    return len(beats) == ranks and all(beat.state == "done" and not _is_process_there(beat) for beat in beats)


def is_suspended(beat: Beat) -> bool:
    """Whether the process of a rank of this host is stopped. Nothing is known about other hosts: False."""
    return beat.state == "running" and _is_here(beat) and _is_process_there(beat) and processes.is_stopped(beat.pid)


def is_long_ago(time_s: float) -> bool:
    """Whether a time of another host's clock is too far from now for any error of the clocks."""
    return abs(time.time() - time_s) > CLOCKS_APART_S


def rank_state(beat: Beat) -> str:
    """The state that a heartbeat says; for one that says it runs, "suspended" if stopped, "lost" if it does not move.

    The beat has this process's time (Moves).
    """
    if beat.state != "running":
        return beat.state
    if is_suspended(beat):
        return "suspended"
    return "lost" if is_process_gone(beat) or time.monotonic() - beat.time_s > ALIVE_S else "running"


def find_alive(beats: Mapping[Path, Beat], ended: Set[Path]) -> set[Path]:
    """The heartbeat files whose rank is alive.

    A rank of another host whose last heartbeat is not of the last seconds, by our clock, is watched until it moves, for
    ALIVE_S at most, unless its attempt has `ended`. A recent one counts as alive.
    """
    running = {path: beat for path, beat in beats.items() if beat.state == "running"}
    alive = {path for path, beat in running.items() if _is_surely_alive(beat)}
    unknown = {path for path, b in running.items() if not (_is_here(b) or is_long_ago(b.time_s))} - alive - ended
    deadline = time.monotonic() + ALIVE_S
    while unknown and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        for path in list(unknown):
            beat = read_json(path, Beat)
            if beat and beat.time_s != beats[path].time_s:
                unknown.remove(path)
                alive |= {path} if beat.state == "running" else set()
    return alive


def _is_here(beat: Beat) -> bool:
    return beat.host == socket.gethostname()


def _is_process_there(beat: Beat) -> bool:
    """Whether its process exists, and is not a later one with its id."""
    return processes.is_running(beat.pid) and beat.started in (0, processes.start_ticks(beat.pid))


def _is_surely_alive(beat: Beat) -> bool:
    """Without a second look. Older versions did not record when the process began, so its id alone proves nothing."""
    recent = abs(time.time() - beat.time_s) <= ALIVE_S
    return _is_process_there(beat) and (recent or beat.started > 0) if _is_here(beat) else recent
