"""Whether a rank is alive, judged by its last heartbeat: one answer for every command, and for the queue of batches."""

import socket
import time

from opensora_launch.machine import processes
from opensora_launch.telemetry.stall import Beat

ALIVE_S = 30.0  # sixty heartbeats: a shared disk may show them late


def is_rank_alive(beat: Beat) -> bool:
    """Whether a rank runs: its heartbeat is recent, and on this host its process is there."""
    return beat.state == "running" and time.time() - beat.time_s <= ALIVE_S and not is_process_gone(beat)


def is_process_gone(beat: Beat) -> bool:
    """Whether a rank of this host ended without a last heartbeat. Nothing is known about other hosts: False."""
    return beat.state == "running" and beat.host == socket.gethostname() and not processes.is_running(beat.pid)


def rank_state(beat: Beat) -> str:
    """The state that its heartbeat says, or "lost" for a rank that says it runs and is not alive."""
    return "lost" if beat.state == "running" and not is_rank_alive(beat) else beat.state
