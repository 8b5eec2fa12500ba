"""Denoising steps with and without the worker's own recorder, hooks, heartbeat and sampler, in turns."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _bench import spread
from torch import Tensor

from opensora_launch.model.kernel_choice import Kernel
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.sampler import node_sampler
from opensora_launch.worker.watch import watch_blocks, watch_kernel

CONFIDENCE = 1.96  # standard deviations of the median's position in the sorted ratios

Times = tuple[float, float]  # seconds: CPU time of the whole process, wall time
Turn = Callable[[], Times]


@dataclass(frozen=True)
class Ratio:
    """Hold the median of the rounds' ratios and its 95% confidence interval."""

    median: float
    low: float
    high: float
    rounds: int

    def text(self) -> str:
        return f"{self.median:.4f} ({self.low:.4f} – {self.high:.4f})"


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Return the median ratio with its 95% confidence interval, from order statistics."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    count = len(found)
    first = max(0, math.floor((count - CONFIDENCE * math.sqrt(count)) / 2))
    return Ratio(spread(found).median, found[first], found[count - 1 - first], count)


def timed(step: Callable[[], object], wait: Callable[[], object]) -> Times:
    """wait: returns when the device has finished."""
    wait()
    cpu, wall = time.process_time(), time.perf_counter()
    step()
    wait()
    return time.process_time() - cpu, time.perf_counter() - wall


def plain(model: Any, kernel: Kernel, given: Mapping[str, Tensor], wait: Callable[[], object]) -> Turn:
    return lambda: timed(lambda: model(**given, attend=lambda q, k, v: kernel.call(q, k, v)[0]), wait)


def recorded(
    model: Any, kernel: Kernel, given: Mapping[str, Tensor], folder: Path, wait: Callable[[], object]
) -> tuple[Turn, Recorder]:
    """Return a step with two collectives per block, as in Ulysses, and its recorder.

    Heartbeat and sampler run only during the step, so they cost the other way nothing.
    """
    device = next(iter(given.values())).device.type
    meta = {
        "rank": 0, "world": 1, "local_rank": 0, "host": "here", "device_name": "", "threads": 1, "layouts": {},
    }  # fmt: skip
    recorder = Recorder(folder / "telemetry" / "rank0.jsonl", meta, device=device, heartbeat=_beat(folder))
    watched = watch_kernel(kernel, recorder)
    watch_blocks(model, recorder, streamed=False)

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        with recorder.collective("ulysses", (0,), 1):
            pass
        out = watched.call(q, k, v)[0]
        with recorder.collective("ulysses", (0,), 1):
            pass
        return out

    def step() -> None:
        with recorder.step("0000_0", 0, 1, 1, "dp1", 1):
            model(**given, attend=attend)

    def turn() -> Times:
        with _threads(folder, recorder):
            return timed(step, wait)

    return turn, recorder


def in_turns(nothing: Turn, everything: Turn, rounds: int) -> dict[str, list[Times]]:
    """Return the seconds of each way in each round of two steps. A round is A B B A, which cancels a drift."""
    found: dict[str, list[Times]] = {"nothing recorded": [], "everything recorded": []}
    for _ in range(rounds):
        a, b, c, d = nothing(), everything(), everything(), nothing()
        found["nothing recorded"].append((a[0] + d[0], a[1] + d[1]))
        found["everything recorded"].append((b[0] + c[0], b[1] + c[1]))
    return found


def costs_of(found: Mapping[str, Sequence[Times]]) -> dict[str, Ratio]:
    """Return time with recording / without, by clock."""
    return {
        clock: ratio(*([times[n] for times in found[way]] for way in ("everything recorded", "nothing recorded")))
        for n, clock in enumerate(("cpu", "wall"))
    }


def _beat(folder: Path) -> Heartbeat:
    return Heartbeat(folder / "heartbeat" / "rank0.json", rank=0, host="here")


@contextmanager
def _threads(folder: Path, recorder: Recorder) -> Iterator[None]:
    """Start a rank's threads before the timed work and stop them after it."""
    recorder.heartbeat = _beat(folder)
    recorder.heartbeat.start()
    samples = folder / "telemetry" / "node-here.jsonl"
    samples.unlink(missing_ok=True)
    sampler = node_sampler(AttemptDir(folder), "here")
    sampler.start()
    while not (samples.exists() and '"sample"' in samples.read_text(encoding="utf-8")):
        time.sleep(0.001)
    try:
        yield
    finally:
        sampler.close()
        recorder.heartbeat.close()
