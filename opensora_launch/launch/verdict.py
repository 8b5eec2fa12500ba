"""Which rank failed first, and why, from what the ranks and torchrun or srun left behind. Pure functions.

A rank that lost a peer reports an error too, but is a victim. So a rank that was killed counts more than what others
report about it, and a rank that reported its own error counts most.
"""

import re
import signal
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from opensora_launch import exit_codes
from opensora_launch.telemetry import stall
from opensora_launch.telemetry.failure import UNKNOWN_HOST, Failure, failure_at
from opensora_launch.telemetry.stall import Beat

_AGENT_LINE = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: \d+\)")
_SRUN_LINE = re.compile(
    r"^srun: error: (\S+): tasks? (\d+)[\d,-]*: (?:Exited with exit code (\d+)|(.+?)(?: \(core dumped\))?)$",
    re.MULTILINE,
)
# How a step ends from outside. It also ends after the exit of one of its tasks, which then stands before these lines.
_STEP_END = re.compile(
    r"^srun: error: (Node failure on \S+)$|^srun: Job step aborted|"
    r"^slurmstepd\S*: error: \*\*\* STEP .*CANCELLED AT \S+( DUE TO [^,*]*[^,* ])?.*$",
    re.MULTILINE,
)
# The last line of a traceback, which may stand among those of other ranks, what `python -m` cannot find, or why srun
# starts nothing.
_ERROR = re.compile(
    r"^Traceback \(most recent call last\):\n(?:(?:[ \t].*|Traceback .*)\n)*(\S.*)$|^\S*python\S*: (.+)$|"
    r"^srun: error: (?!\S+: tasks? )(.+)$",
    re.MULTILINE,
)
_SIGNALS = {signal.strsignal(s): s for s in signal.Signals}  # as srun names them
_ENDED_BY_US = (signal.SIGTERM, signal.SIGINT)  # torchrun ends the other ranks with these


@dataclass(frozen=True)
class Exit:
    """The end of a rank, as torchrun or srun saw it. A negative code is a signal's number."""

    rank: int
    code: int
    host: str = ""  # as srun names it; torchrun's ranks are on this host


def agent_exits(agent_log: str) -> tuple[Exit, ...]:
    """The exits in the log of torchrun or srun, in order. On one machine the local rank is the rank."""
    found = [Exit(int(rank), int(code)) for code, rank in _AGENT_LINE.findall(agent_log)]
    for host, rank, code, words in _SRUN_LINE.findall(agent_log):
        found.append(Exit(int(rank), int(code) if code else -_SIGNALS.get(words, signal.SIGKILL), host))
    return tuple(found)


def step_end(agent_log: str) -> str:
    """How srun's step was ended from outside, before a rank of it ended; "" if it was not."""
    end, first = _STEP_END.search(agent_log), _SRUN_LINE.search(agent_log)
    if end is None or (first and first.start() < end.start()):
        return ""
    return f"ended: {end[1]}" if end[1] else f"was cancelled{(end[2] or '').lower()}"


def was_preempted(exits: Sequence[Exit]) -> bool:
    """Whether the ranks stored their progress and stopped, as they were asked to."""
    return bool(exits) and exits[0].code == exit_codes.PREEMPTED


def first_failure(
    reported: Failure | None,
    beats: Sequence[Beat],
    exits: Sequence[Exit],
    lost: Collection[int],
    code: int | None,
    outside: str = "",
) -> Failure:
    """The verdict.

    `reported` is error.json; `lost` are ranks whose process is gone without a last heartbeat; `code` is
    the exit code of their starter, which takes them along if a signal ends it. `outside` is step_end.
    """
    if reported and (reported.kind == "user" or reported.traceback):
        return reported
    if code is not None and code < 0:
        return failure_at(-1, None, "failure", f"the ranks ended with what started them, which {how_it_ended(code)}")
    if outside:
        return failure_at(-1, None, "failure", f"the ranks ended with their Slurm step, which {outside}")
    by_rank = {beat.rank: beat for beat in beats}
    ended = [e for e in exits if e.code and -e.code not in _ENDED_BY_US]
    killed = [e for e in ended if e.code < 0]
    if blamed := killed or ([] if reported else ended):
        first = min(blamed, key=lambda e: by_rank[e.rank].time_s if e.rank in by_rank else 0.0)
        beat, how = by_rank.get(first.rank), how_it_ended(first.code)
        message = f"{stall.name_of(beat)} {how}; {stall.last_seen(beat)}" if beat else how
        return failure_at(first.rank, beat, "failure", message)
    if reported:
        return reported
    if gone := stall.oldest([beat for beat in beats if beat.rank in lost]):
        return failure_at(gone.rank, gone, "failure", stall.gone_message(gone))
    message = f"the ranks ended without an error message (exit code of their starter: {code})"
    return failure_at(0, by_rank.get(0), "failure", message)


def with_last_words(failure: Failure, agent_log: str, here: str) -> Failure:
    """Add its host and the first error in the log of its starter to the failure of a rank that had no heartbeat.

    Such a rank ended before it opened a log of its own. `here` is this host.
    """
    if failure.host != UNKNOWN_HOST:
        return failure
    host = next((e.host for e in agent_exits(agent_log) if e.rank == failure.rank), "") or here
    found = _ERROR.search(agent_log) if failure.rank >= 0 else None
    words = f": {found[found.lastindex or 0]}" if found else ""
    return replace(failure, host=host, message=failure.message + words)


def silent_failure(beats: Sequence[Beat], now: float, timeout_s: float) -> Failure | None:
    """The rank whose heartbeat stopped first, if that is more than `timeout_s` ago: its process is stopped."""
    silent = stall.longest_silent(beats, now, timeout_s)
    return failure_at(silent.rank, silent, "stalled", stall.silence_message(silent, now)) if silent else None


def missing_failure(beats: Sequence[Beat], ranks: int, waited_s: float) -> Failure | None:
    """The first rank that never wrote a heartbeat."""
    absent = sorted(set(range(ranks)) - {beat.rank for beat in beats})
    if not absent:
        return None
    why = "it never started, or its host does not see the run's folder"
    return failure_at(absent[0], None, "stalled", f"rank {absent[0]} sent no heartbeat in {waited_s:.0f} s: {why}")


def how_it_ended(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    hint = "; the kernel kills a process that way when memory runs out (see dmesg)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"
