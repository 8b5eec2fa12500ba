"""What the ranks of an attempt and their GPUs do now, by their heartbeats and samples."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.alive import rank_state
from opensora_launch.telemetry.events import Meta, read_meta
from opensora_launch.telemetry.samples import NodeSamples, bare_uuid, gpu_readings, read_samples
from opensora_launch.telemetry.stall import Beat, find_guilty

TAIL_BYTES = 64 * 1024  # read from the end of a node's file, which keeps growing: its last samples
CPU_SAMPLES = 4  # the use of a CPU is measured over so many samples
GPU_SAMPLES = 20  # in which every kind of reading of a GPU was due
STUCK_S = 1.0  # a rank that is longer in one collective is called waiting


@dataclass(frozen=True)
class DeviceUse:
    """Use of a rank's GPU, or of its process if it has none (then `busy` 1 is one whole core). None: unknown."""

    busy: float | None = None
    memory_bytes: float | None = None
    power_w: float | None = None
    of_gpu: bool = False
    memory_total_bytes: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    mhz: float | None = None
    mhz_max: float | None = None

    @property
    def cells(self) -> list[str]:
        """Use, memory and power as text, "" if unknown."""
        busy = "" if self.busy is None else f"{self.busy:.0%}"
        memory = "" if self.memory_bytes is None else f"{self.memory_bytes / 2**30:.1f} GiB"
        watts = "" if self.power_w is None else f"{self.power_w:.0f} W"
        return [busy, memory, f"{self.power_w / 1000:.1f} kW" if self.power_w and self.power_w >= 1000 else watts]


def rank_uses(attempt: AttemptDir, beats: Sequence[Beat]) -> dict[int, DeviceUse]:
    """What each rank uses, by the last samples of its node. Ranks of nodes without samples are left out."""
    nodes, metas = dict[str, NodeSamples](), rank_metas(attempt)
    for path in attempt.all_samples():
        with suppress(OSError):  # it cannot be read at this moment, as may be with heartbeats
            if (node := read_samples(path, TAIL_BYTES)) and node.samples:
                nodes[node.host] = node
    return {b.rank: _use(b.rank, nodes[b.host], metas.get(b.rank)) for b in beats if b.host in nodes}


def together(uses: Collection[DeviceUse]) -> DeviceUse:
    """Combine the use of several ranks: the mean of `busy`, the fullest memory, and the power of all."""
    known = _combined(uses, busy=fmean, memory_bytes=max, power_w=sum)
    return DeviceUse(**known, of_gpu=any(use.of_gpu for use in uses))


def totals(uses: Sequence[DeviceUse]) -> DeviceUse:
    """The same, with the memory of all, the hottest GPU, and the slowest one."""
    sums = _combined(uses, memory_bytes=sum, memory_total_bytes=sum, power_limit_w=sum)
    return replace(together(uses), **sums, **_combined(uses, temperature_c=max, mhz=min, mhz_max=min))


def _combined(uses: Collection[DeviceUse], **how: Callable[[list[float]], float]) -> dict[str, Any]:
    """Each of these values by its function, without those that are unknown of all."""
    known = {name: [value for use in uses if (value := getattr(use, name)) is not None] for name in how}
    return {name: how[name](values) for name, values in known.items() if values}


def rank_metas(attempt: AttemptDir) -> dict[int, Meta]:
    """What each rank wrote about itself when it began."""
    return {meta.rank: meta for path in attempt.all_events() if (meta := read_meta(path))}


def stuck_s(beat: Beat, now: float) -> float | None:
    """For how long a rank has waited in one collective; None if that is no longer than STUCK_S.

    The beat and `now` have this process's time (Moves).
    """
    waits = beat.inside and now - beat.progress_s > STUCK_S and rank_state(beat) == "running"
    return now - beat.progress_s if waits else None


def waiting(beats: Sequence[Beat], now: float) -> tuple[int, int | None]:
    """How many ranks wait, and the rank that blocks the longest waiter, if it is a single one. Times as in stuck_s."""
    stuck = [beat for beat in beats if stuck_s(beat, now) is not None]
    if not stuck:
        return 0, None
    return len(stuck), find_guilty(beats, now, min(stuck, key=lambda b: b.progress_s).rank).rank


def _use(rank: int, node: NodeSamples, meta: Meta | None) -> DeviceUse:
    last = node.samples[-1]
    own = bare_uuid((meta and meta.device_uuid) or "none")
    place = next((n for n, gpu in enumerate(node.gpus) if bare_uuid(gpu["uuid"]) == own), None)
    if place is not None and place < len(last["gpus"]):
        gpu: dict[str, Any] = {}  # the last reading of each kind: not all are due at the same time
        for readings in gpu_readings(node.samples[-GPU_SAMPLES:], place):
            gpu |= readings
        facts: Mapping[str, Any] = node.gpus[place]
        return DeviceUse(
            gpu.get("util"),
            gpu.get("memory_used_bytes"),
            gpu.get("power_w"),
            of_gpu=True,
            memory_total_bytes=facts.get("memory_bytes"),
            power_limit_w=facts.get("power_limit_w"),
            temperature_c=gpu.get("temperature_c"),
            mhz=gpu.get("sm_mhz"),
            mhz_max=facts.get("sm_mhz_max"),
        )
    here = [(s["time_s"], r) for s in node.samples[-CPU_SAMPLES:] for r in s["ranks"] if r["rank"] == rank]
    if not here:
        return DeviceUse()
    (first_s, first), (last_s, now) = here[0], here[-1]
    known = last_s > first_s and "cpu_s" in first and "cpu_s" in now
    return DeviceUse((now["cpu_s"] - first["cpu_s"]) / (last_s - first_s) if known else None, now.get("memory_bytes"))
