"""Record what a rank does: tuples in a list, written as lines when a step or phase is over.

Nothing here waits for the GPU inside a phase: marks of steps and collectives are read once they are ready. Inside a
step only plain tuples are made, of an event's class and its fields: after a kernel of the network, Python's own code is
no longer in the core's caches, so each function call costs microseconds.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opensora_launch.rundir import named
from opensora_launch.telemetry import events
from opensora_launch.telemetry.clocks import Clock, HostClock, cuda_clock
from opensora_launch.telemetry.events import Collective, PhaseSpan, Step, WorkSpan
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.stall import Position

_Done = tuple[Any, ...]  # an event's class and its fields, with marks for seconds


class Recorder:
    """Writes `telemetry/rank<R>.jsonl` and sets the rank's heartbeat. Only for the thread that computes.

    `meta` has the fields of `events.Meta` except the clock's; a worker may pass `start_s` and `start_epoch_s` that it
    took before its imports. If an exception leaves a block, the block is recorded, and the heartbeat stays at the place
    where it happened.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], *, device: str, heartbeat: Heartbeat, clock: Clock | None = None
    ) -> None:
        started = {"start_s": time.monotonic(), "start_epoch_s": time.time()}
        self.clock: Clock = clock or (cuda_clock() if device == "cuda" else HostClock())
        self.mark = self.clock.mark
        self.heartbeat = heartbeat
        self.done: list[_Done] = []  # the marks of steps and collectives in it may not be ready yet
        self.counts: dict[tuple[int, ...], int] = {}
        self.phase: str | None = None  # the phase that is recorded, which holds all that begins inside it
        if self.clock.name == "device":
            heartbeat.device_position = self._device_position
        facts = events.Meta(
            **(started | dict(meta) | {"device": device}), clock=self.clock.name, clock_error_s=self.clock.error_s
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        with named(path):
            path.write_text(events.record_line(facts), encoding="utf-8")
        self._path = path

    @contextmanager
    def span(self, phase: str, *, video: str | None = None) -> Iterator[None]:
        """Record a phase. It ends when the device has finished, so that its work does not count in the next phase.

        A phase inside another one belongs to that: only the heartbeat tells of it. So it is with the steps of an image,
        whose phases are inside the phase "image".
        """
        assert phase in events.PHASES, phase
        inner, beat = self.phase is not None, self.heartbeat
        if not inner:
            self.phase = phase
        beat.phase, beat.video, beat.step, beat.steps = phase, video, None, None
        start_s = time.monotonic()
        try:
            yield
            self.clock.wait()
        finally:
            if not inner:
                self.phase = None
                self.done.append((PhaseSpan, phase, start_s, time.monotonic(), video))
                self.flush()

    @contextmanager
    def step(self, video: str, step: int, rows: int, own_rows: int, layout: str, steps: int) -> Iterator[None]:
        """Record a denoising step, inside a denoise phase. `rows` of all ranks together, `own_rows` of this one."""
        beat = self.heartbeat
        beat.video, beat.step, beat.steps = video, step, steps
        start = self.mark()
        try:
            yield
        finally:
            if self.phase != events.IMAGE:
                self.done.append((Step, video, step, rows, own_rows, layout, start, self.mark()))
            self.flush()

    def collective(self, axis: str, ranks: tuple[int, ...], nbytes: int) -> "_Collective":
        """Record the part of a collective in which this rank cannot compute. It sends `nbytes`."""
        return _Collective(self, axis, ranks, nbytes)

    def work(self, part: str, start: Any) -> None:
        """Record that a part of a step's compute, or a preview, is over; `start` is the mark taken when it began."""
        self.done.append((WorkSpan, part, start, self.mark()))

    def constant(self, found: events.ConstantWeights) -> None:
        """Record weights that are one number all over."""
        self._append(events.record_line(found))

    def flush(self) -> None:
        """Write the events whose marks are ready. Steps and phases call this at their end."""
        clock, lines = self.clock, []
        for kind, *values in self.done:
            if clock.name == "device" and kind is not PhaseSpan:
                if not clock.ready(values[-1]):
                    break
                values[-2:] = map(clock.seconds, values[-2:])
            lines.append(events.line_of(kind, values))
        self.done = self.done[len(lines) :]
        self._append("".join(lines))

    def close(
        self,
        peak_memory_bytes: int,
        videos: Sequence[str],
        *,
        clock_offset_s: float | None = None,
        set_aside_bytes: int | None = None,
    ) -> None:
        """Write the rest and the last line. Only for a rank that reached its end."""
        self.clock.wait()
        self.flush()
        assert not self.done, "the device has finished"
        drift_s = self.clock.drift_s()
        end = events.End(time.monotonic(), peak_memory_bytes, tuple(videos), drift_s, clock_offset_s, set_aside_bytes)
        self._append(events.record_line(end))

    def _append(self, lines: str) -> None:
        with named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(lines)

    def _device_position(self) -> Position | None:
        """The collective that the device is in; the host may be far ahead. The heartbeat's thread calls this.

        A new thread's device is GPU 0, where a query makes a context of hundreds of MB (pytorch/torchcomms#777).
        """
        self.clock.enter_thread()
        for kind, *values in list(self.done):
            if kind is not Collective or self.clock.ready(values[-1]):
                continue
            return Position(*values[:3]) if self.clock.ready(values[-2]) else None
        return None


class _Collective:
    __slots__ = ("nbytes", "position", "recorder", "start")

    def __init__(self, recorder: Recorder, axis: str, ranks: tuple[int, ...], nbytes: int) -> None:
        counts = recorder.counts
        sequence = counts[ranks] = counts.get(ranks, 0) + 1
        self.recorder, self.nbytes, self.position = recorder, nbytes, (axis, ranks, sequence)

    def __enter__(self) -> None:
        recorder = self.recorder
        beat = recorder.heartbeat
        beat.collective = self.position
        beat.inside = True
        self.start = recorder.mark()

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        recorder = self.recorder
        end = recorder.mark()
        recorder.done.append((Collective, *self.position, self.nbytes, self.start, end))
        if kind is None:
            recorder.heartbeat.inside = False
