"""What the ranks of an attempt do now, and their GPUs, from the files that they write: for `top` and for the progress
that `generate` shows.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.state import (state_of)
from opensora_launch.telemetry.samples import NodeSamples, bare_uuid, read_samples
from opensora_launch.telemetry.stall import Beat, find_guilty
from opensora_launch.telemetry.typed import is_number

TAIL_BYTES = 64 * 1024  # of a node's file, which grows all the time: some of its last samples
CPU_SAMPLES = 4  # over which a process's use of the CPU is taken
STUCK_S = 1.0  # in one collective, to be called waiting


@dataclass(frozen=True)
class Use:
    """Of a rank's GPU, or of its process where it has none (`busy` is then 1 for a whole core); None is not known."""

    busy: float | None = None
    memory_bytes: float | None = None
    power_w: float | None = None
    of_gpu: bool = False

    @property
    def cells(self) -> list[str]:
        """Use, memory and power, "" where not known."""
        busy = "" if self.busy is None else f"{self.busy:.0%}"
        memory = "" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        watts = "" if self.power_w is None else f"{self.power_w:.0f} W"
        return [busy, memory, f"{self.power_w / 1000:.1f} kW" if self.power_w and self.power_w >= 1000 else watts]


def rank_uses(attempt: AttemptDir, beats: Sequence[Beat]) -> dict[int, Use]:
    """What each rank uses by the last samples of its node; a rank that no node's file knows is left out."""
    nodes = {node.host: node for node in _nodes(attempt)}
    metas = rank_metas(attempt)
    return {b.rank: _use(b.rank, nodes[b.host], metas.get(b.rank, {})) for b in beats if b.host in nodes}


def together(uses: Iterable[Use]) -> Use:
    """Of several ranks: the mean of their use, the fullest memory, and the power of all."""
    every = list(uses)
    busy = [use.busy for use in every if use.busy is not None]
    memory = [use.memory_bytes for use in every if use.memory_bytes is not None]
    power = [use.power_w for use in every if use.power_w is not None]
    return Use(
        busy=sum(busy) / len(busy) if busy else None,
        memory_bytes=max(memory, default=None),
        power_w=sum(power) if power else None,
        of_gpu=any(use.of_gpu for use in every),
    )


def rank_metas(attempt: AttemptDir) -> dict[int, Mapping[str, Any]]:
    """The first line of each rank's events, if it is whole; the rest may be long."""
    return {m["rank"]: m for p in attempt.all_events() if (m := _meta(p))}


def stuck_s(beat: Beat, now: float) -> float | None:
    """For how long a rank has waited in one collective, where that is worth a word."""
    waits = beat.inside and now - beat.progress_s > STUCK_S and state_of(beat) == "running"
    return now - beat.progress_s if waits else None


def waiting(beats: Sequence[Beat], now: float) -> tuple[int, int | None]:
    """How many ranks wait, and the slowest: the rank that the one that has waited longest waits for, if it is one."""
    stuck = [beat for beat in beats if stuck_s(beat, now) is not None]
    if not stuck:
        return 0, None
    return len(stuck), find_guilty(beats, now, min(stuck, key=lambda b: b.progress_s).rank).rank


def share_done(beats: Sequence[Beat]) -> float | None:
    """Of all videos, whose steps count as parts of them; None before there is work.

    Each rank counts what is done by all, perhaps some time ago; ranks of one video tell of the same steps.
    """
    total = max((beat.videos for beat in beats), default=0)
    if not total:
        return None
    parts = {b.video: b.at_once * b.step / b.steps for b in beats if b.step is not None and b.steps}
    return min(max(beat.videos_done for beat in beats) + sum(parts.values()), total) / total


def _use(rank: int, node: NodeSamples, meta: Mapping[str, Any]) -> Use:
    last = node.samples[-1]
    own = bare_uuid(meta.get("device_uuid") or "none")
    place = next((n for n, gpu in enumerate(node.gpus) if bare_uuid(gpu["uuid"]) == own), None)
    if place is not None and place < len(last["gpus"]):
        gpu: Mapping[str, Any] = last["gpus"][place]
        return Use(gpu.get("util"), gpu.get("memory_used_bytes"), gpu.get("power_w"), of_gpu=True)
    here = [(s["time_s"], r) for s in node.samples[-CPU_SAMPLES:] for r in s["ranks"] if r["rank"] == rank]
    if not here:
        return Use()
    (first_s, first), (last_s, now) = here[0], here[-1]
    known = last_s > first_s and "cpu_s" in first and "cpu_s" in now
    return Use((now["cpu_s"] - first["cpu_s"]) / (last_s - first_s) if known else None, now.get("memory_bytes"))


def _nodes(attempt: AttemptDir) -> Iterator[NodeSamples]:
    """Each node's last samples. A file that cannot be read at this moment is passed over, as heartbeats are."""
    for path in attempt.all_samples():
        try:
            node = read_samples(path, TAIL_BYTES)
        except OSError:
            continue
        if node and node.samples:
            yield node


def _meta(path: Path) -> Mapping[str, Any] | None:
    try:
        with path.open(encoding="utf-8") as file:
            found: dict[str, Any] = json.loads(file.readline())
        return found if is_number(found["rank"]) and is_number(found["start_epoch_s"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
