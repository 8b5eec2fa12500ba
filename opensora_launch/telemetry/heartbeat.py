"""Each rank writes every half second that it is alive and where it is. These files tell which rank causes a stall.

A thread writes `heartbeat/rank<R>.json`. The recorder sets the attributes of `Heartbeat` without a lock: each is
replaced whole, and the next beat corrects one that mixes two moments. An error in the thread must not end it, because a
rank without heartbeats looks stopped: the next beat names it.
"""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from opensora_launch.machine import processes
from opensora_launch.rundir import write_whole
from opensora_launch.telemetry.lines import read_json
from opensora_launch.telemetry.moves import WATCHED_S, Moves
from opensora_launch.telemetry.stall import SILENT_S, Beat, Position, Verdict, find_guilty

BEAT_INTERVAL_S = 0.5
UNCOUNTED = ("setup", "load", "text")  # phases in which a rank may work for long without other signs of progress
LONGEST_S = 3600.0  # of such a phase; after it, a busy rank may be in an endless loop
_AS_SET = (  # attributes that a beat repeats
    "phase", "video", "step", "steps", "videos_done", "videos", "loaded_bytes", "load_bytes", "load_since_s", "at_once",
    "images", "problem",
)  # fmt: skip

log = logging.getLogger("opensora_launch.worker")
_Watch = tuple[float, Callable[[Verdict], None]]


class Heartbeat:
    """The heartbeat of this rank. Call `start`, then `watch` to detect stalls, and `close` with the last state."""

    def __init__(
        self, path: Path, *, rank: int, host: str, videos: int = 0, interval_s: float = BEAT_INTERVAL_S
    ) -> None:
        self.phase = "setup"
        self.video: str | None = None
        self.step: int | None = None
        self.steps: int | None = None
        self.at_once = 1  # videos in the current batch
        self.videos_done = 0
        self.videos = videos
        self.images = False  # whether these are first frames
        self.loaded_bytes = 0  # weights that this rank has read, out of load_bytes
        self.load_bytes = 0
        self.load_since_s = 0.0  # when it began, in seconds of the epoch
        self.looks = 0  # how often it has checked on other ranks of the run
        self.collective: tuple[str, tuple[int, ...], int] | None = None  # the last one, as the fields of a Position
        self.inside = False  # whether it is not over
        self.device_position: Callable[[], Position | None] = lambda: None  # the collective that the device is in
        self.problem: str | None = None  # the last error of a beat
        self._path, self._rank, self._host = path, rank, host
        self._interval_s = interval_s
        self._started = processes.start_ticks(os.getpid())
        self._epoch_s = time.time() - time.monotonic()  # a jump of the wall clock must not look like a stall
        self._computes = time.pthread_getcpuclockid(threading.get_ident())  # CPU time of this, the main thread
        self._phase = ("", 0.0)  # the phase, and since when
        self._last: tuple[Any, ...] = ()
        self._progress_s = self.now()
        self._watch: _Watch | None = None
        self._moves = Moves()  # of the other ranks
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def loading(self, nbytes: int) -> None:
        """Report that this rank begins to read `nbytes` of weights."""
        self.loaded_bytes, self.load_bytes, self.load_since_s = 0, nbytes, self.now()

    def loaded(self, nbytes: int) -> None:
        """Report that `nbytes` more were read."""
        self.loaded_bytes += nbytes

    def wait_for_others(self) -> None:
        """Report that this rank only checks whether other ranks are alive: it is idle, but not stalled."""
        self.phase, self.video, self.step, self.steps = "queue", None, None, None
        self.looks += 1

    def now(self) -> float:
        """The time in seconds of the epoch, by a clock that never jumps."""
        return time.monotonic() + self._epoch_s

    def start(self) -> None:
        """Write the first beat now, and the others from a thread."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.beat(self.now()))
        self._thread.start()

    def watch(self, timeout_s: float, on_stall: Callable[[Verdict], None]) -> None:
        """Call `on_stall` once, from the thread, when this rank waits in a collective for a stalled rank.

        That is when this rank has been inside one collective for `timeout_s`, and the rank that it waits for is dead
        or has not moved for as long. Nothing is watched outside collectives: loading and computing may take long.
        During set-up, loading and the encoding of texts, a main thread that uses its CPU counts as moving, for an hour
        at most.
        """
        self._watch = (timeout_s, on_stall)

    def close(self, state: str = "done") -> None:
        """Stop the thread and write the last beat: "done", "failed" or "preempted"."""
        assert state in ("done", "failed", "preempted"), state
        self._ending.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()
        self.write(self.beat(self.now(), state))

    def beat(self, now: float, state: str = "running") -> Beat:
        """Describe where this rank is, and since when."""
        inside, position = self.inside, self.collective and Position(*self.collective)
        if not inside and (on_device := self._on_device()):
            inside, position = True, on_device
        if self.phase != self._phase[0]:
            self._phase = (self.phase, now)
        counts = not inside and self.phase in UNCOUNTED and now - self._phase[1] < LONGEST_S
        worked = round(time.clock_gettime(self._computes), 1) if counts else 0.0
        at = (self.phase, self.video, self.step, self.videos_done, self.loaded_bytes, self.looks)
        here = (*at, position, inside, worked)
        if here != self._last:
            self._last, self._progress_s = here, now
        axis, ranks, sequence = position or (None, (), 0)
        return Beat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            time_s=now,
            state=state,
            collective=axis,
            ranks=ranks,
            sequence=sequence,
            inside=inside,
            progress_s=self._progress_s,
            started=self._started,
            **{name: getattr(self, name) for name in _AS_SET},
        )

    def write(self, beat: Beat) -> None:
        """Rewrite the file. If the disk is full, `problem` keeps the reason, and the next beat tries again."""
        try:
            write_whole(self._path, msgspec.json.encode(beat).decode())
        except OSError as e:
            self._note(e)

    def check(self, mine: Beat) -> None:
        """Detect a stall, as described in `watch`."""
        if self._watch is None or not mine.inside:
            return
        timeout_s, on_stall = self._watch
        waited_s = mine.time_s - mine.progress_s
        silent_s = max(3 * self._interval_s, min(SILENT_S, timeout_s / 2))
        if waited_s < timeout_s - 2 * silent_s:
            return
        others = [b for b in read_heartbeats(self._path.parent) if b.rank != mine.rank]
        mine, *others = self._moves.own_time([mine, *others])  # looked at before they count, to see which of them move
        if waited_s < timeout_s:
            return
        verdict = find_guilty([mine, *others], mine.time_s, mine.rank, silent_s=silent_s)
        if verdict.stalled_s >= timeout_s:
            on_stall(verdict)
            self._watch = None

    def _on_device(self) -> Position | None:
        try:
            return self.device_position()
        except Exception as error:  # noqa: BLE001 after an error of the GPU, no query of it succeeds
            self._note(error)
            return None

    def _note(self, error: Exception) -> None:
        """Keep an error for the next beat, and say it in the log if it is a new one."""
        found = f"{type(error).__name__}: {error}".partition("\n")[0]
        if found != self.problem:
            log.warning("the heartbeat goes on after an error: %s", found)
        self.problem = found

    def _run(self) -> None:
        last_s = self.now()
        while not self._ending.wait(self._interval_s):
            if self.now() - last_s > WATCHED_S:  # this process was suspended: nobody could move
                self._last = ()
            last_s = self.now()
            try:
                beat = self.beat(last_s)
                self.write(beat)
                self.check(beat)
            except Exception as error:  # noqa: BLE001 the next beat tries again
                self._note(error)


def read_heartbeats(folder: Path) -> list[Beat]:
    """The last beat of each rank, ordered by rank. Files that cannot be read are ignored."""
    beats = [beat for path in folder.glob("rank*.json") if (beat := read_json(path, Beat))]
    return sorted(beats, key=lambda b: b.rank)
