"""Which rank failed first, and of what, from what the ranks and torchrun or srun left behind. Pure functions.

A rank that lost a peer reports an error too, and is the victim. So a rank that was killed without a word comes before
what others say about it, and a rank that said what is wrong with itself comes before everything.
"""

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from opensora_launch import exit_codes
from opensora_launch.telemetry.failure import Failure
from opensora_launch.telemetry.stall import Beat

AGENT_SAYS = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
SRUN_SAYS = re.compile(
    r"^srun: error: \S+: tasks? (\d+)[\d,-]*: (?:Exited with exit code (\d+)|(.+?)(?: \(core dumped\))?)$", re.MULTILINE
)
SIGNALS = {signal.strsignal(s): s for s in signal.Signals}  # as srun names them
ENDED_BY_US = (signal.SIGTERM, signal.SIGINT)  # torchrun ends the other ranks by these


@dataclass(frozen=True)
class Exit:
    """A rank that torchrun or srun saw ending first. A negative code is a signal's number."""

    rank: int
    code: int
    pid: int


def agent_exits(agent_log: str) -> tuple[Exit, ...]:
    """The exits that torchrun's or srun's log names, in its order. On one machine the local rank is the rank."""
    found = [Exit(int(rank), int(code), int(pid)) for code, rank, pid in AGENT_SAYS.findall(agent_log)]
    for rank, code, words in SRUN_SAYS.findall(agent_log):
        found.append(Exit(int(rank), int(code) if code else -SIGNALS.get(words, signal.SIGKILL), 0))
    return tuple(found)


def was_preempted(exits: Sequence[Exit]) -> bool:
    """Whether the ranks have stored where they are and left, as they were asked to."""
    return bool(exits) and exits[0].code == exit_codes.PREEMPTED


def first_failure(
    said: Failure | None, beats: Sequence[Beat], exits: Sequence[Exit], lost: Collection[int], code: int | None
) -> Failure:
    """The verdict. `lost` are ranks whose process was gone while its heartbeat still ran; `code` is their starter's."""
    if said and (said.kind == "user" or said.traceback):
        return said
    by_rank = {beat.rank: beat for beat in beats}
    killed = [e for e in exits if e.code < 0 and -e.code not in ENDED_BY_US]
    ended = killed or [e for e in exits if e.code not in (0, -signal.SIGTERM, -signal.SIGINT)]
    if ended and not (said and not killed):
        first = min(ended, key=lambda e: by_rank[e.rank].time_s if e.rank in by_rank else 0.0)
        return _failure(first.rank, by_rank.get(first.rank), how_it_ended(first.code))
    if said:
        return said
    if gone := [beat for beat in beats if beat.rank in lost]:
        oldest = min(gone, key=lambda beat: beat.time_s)
        return _failure(oldest.rank, oldest, "ended without a word")
    return _failure(0, by_rank.get(0), f"the ranks ended without saying why (their starter's exit code is {code})")


def silent_failure(beats: Sequence[Beat], now: float, timeout_s: float) -> Failure | None:
    """The rank whose heartbeat stopped longest ago, if that is more than `timeout_s`: its process is stopped."""
    silent = [beat for beat in beats if beat.state == "running" and now - beat.time_s > timeout_s]
    if not silent:
        return None
    oldest = min(silent, key=lambda beat: beat.time_s)
    message = f"rank {oldest.rank} (pid {oldest.pid}) has been silent for {now - oldest.time_s:.0f} s; {where(oldest)}"
    return _failure(oldest.rank, oldest, message, kind="stalled")


def missing_failure(beats: Sequence[Beat], ranks: int, waited_s: float) -> Failure | None:
    """The first rank that never wrote a heartbeat."""
    absent = sorted(set(range(ranks)) - {beat.rank for beat in beats})
    if not absent:
        return None
    return _failure(absent[0], None, f"rank {absent[0]} gave no sign of life in {waited_s:.0f} s", kind="stalled")


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the kernel does that to a process when memory runs out (see dmesg)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def where(beat: Beat) -> str:
    """Where a rank was last seen."""
    place = f"phase {beat.phase}" + (f", video {beat.video}" if beat.video else "")
    place += f", step {beat.step} of {beat.steps}" if beat.step is not None else ""
    return f"last seen in {place}" + (f", collective {beat.collective} #{beat.sequence}" if beat.collective else "")


def _failure(rank: int, beat: Beat | None, message: str, kind: str = "failure") -> Failure:
    if beat is None:
        return Failure(rank=rank, host="", kind=kind, message=message)
    if kind == "failure":
        message = f"rank {rank} (pid {beat.pid}) {message}; {where(beat)}" if "ranks" not in message else message
    return Failure(
        rank=rank,
        host=beat.host,
        kind=kind,
        message=message,
        phase=beat.phase,
        step=beat.step,
        collective=beat.collective,
    )
