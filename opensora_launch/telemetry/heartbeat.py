"""Each rank says every half second that it lives and where it is; from these files a stall gets a name.

A thread writes `heartbeat/rank<R>.json`. The recorder moves the attributes of `Heartbeat`, without a lock: each is
replaced whole, and a beat that mixes two moments is put right by the next.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opensora_launch.rundir import write_whole
from opensora_launch.telemetry.stall import SILENT_S, Beat, Position, Verdict, find_guilty
from opensora_launch.telemetry.typed import fits

INTERVAL_S = 0.5
UNCOUNTED = ("setup", "load", "text")  # phases in which a rank may work for long while nothing else tells of it
LONGEST_S = 3600.0  # of such a phase: beyond it a rank that is busy may just as well turn in a circle

Watch = tuple[float, Callable[[Verdict], None]]


class Heartbeat:
    """The heartbeat of this rank. `start` the thread, `watch` for stalls, `close` with the last state."""

    def __init__(self, path: Path, *, rank: int, host: str, videos: int = 0, interval_s: float = INTERVAL_S) -> None:
        self.phase = "setup"
        self.video: str | None = None
        self.step: int | None = None
        self.steps: int | None = None
        self.at_once = 1  # videos in the present batch
        self.videos_done = 0
        self.videos = videos
        self.loaded_bytes = 0  # of the weights that this rank reads
        self.load_bytes = 0
        self.load_since_s = 0.0  # of the epoch
        self.looks = 0  # at what others of the run do
        self.collective: tuple[str, tuple[int, ...], int] | None = None  # the last one's Position, as a plain tuple
        self.inside = False  # that collective
        self.device_position: Callable[[], Position | None] = lambda: None  # in which collective the device is
        self.write_error: str | None = None
        self._path, self._rank, self._host = path, rank, host
        self._interval_s = interval_s
        self._epoch_s = time.time() - time.monotonic()  # so that no step of the wall clock looks like a stall
        self._computes = time.pthread_getcpuclockid(threading.get_ident())  # the CPU time of this, its main thread
        self._phase = ("", 0.0)  # and since when
        self._last: tuple[Any, ...] = ()
        self._progress_s = self.now()
        self._watch: Watch | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def loading(self, nbytes: int) -> None:
        """This rank begins to read so many bytes of weights."""
        self.loaded_bytes, self.load_bytes, self.load_since_s = 0, nbytes, self.now()

    def loaded(self, nbytes: int) -> None:
        """So many of them have come."""
        self.loaded_bytes += nbytes

    def wait_for_others(self) -> None:
        """This rank looks whether others of the run live: it does nothing else, and is not stalled."""
        self.phase, self.video, self.step, self.steps = "queue", None, None, None
        self.looks += 1

    def now(self) -> float:
        """Seconds of the epoch, which never jump."""
        return time.monotonic() + self._epoch_s

    def start(self) -> None:
        """Write the first beat now, the others from a thread."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.beat(self.now()))
        self._thread.start()

    def watch(self, timeout_s: float, on_stall: Callable[[Verdict], None]) -> None:
        """Call `on_stall` once, from the thread, when this rank waits in a collective for a rank that has stalled.

        Stalled: this rank is inside one collective for `timeout_s`, and the rank it waits for is dead or did not move
        for as long. Outside collectives nothing is watched: to load or to compute may take long. During set-up, loading
        and the encoding of texts a main thread that uses its CPU moves, for an hour at most.
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
        """Where this rank is, and since when."""
        inside, position = self.inside, self.collective and Position(*self.collective)
        if not inside and (on_device := self.device_position()):
            inside, position = True, on_device
        if self.phase != self._phase[0]:
            self._phase = (self.phase, now)
        counts = not inside and self.phase in UNCOUNTED and now - self._phase[1] < LONGEST_S
        worked = round(time.clock_gettime(self._computes), 1) if counts else 0.0
        at = (self.phase, self.video, self.step, self.videos_done, self.loaded_bytes, self.looks)
        here = (*at, position, inside, worked)
        if here != self._last:
            self._last, self._progress_s = here, now
        return Beat(
            rank=self._rank,
            host=self._host,
            pid=os.getpid(),
            time_s=now,
            state=state,
            phase=self.phase,
            video=self.video,
            step=self.step,
            steps=self.steps,
            videos_done=self.videos_done,
            videos=self.videos,
            collective=position.axis if position else None,
            ranks=position.ranks if position else (),
            sequence=position.sequence if position else 0,
            inside=inside,
            progress_s=self._progress_s,
            loaded_bytes=self.loaded_bytes,
            load_bytes=self.load_bytes,
            load_since_s=self.load_since_s,
            at_once=self.at_once,
        )

    def write(self, beat: Beat) -> None:
        """Rewrite the file; a full disk is remembered in `write_error` and tried again at the next beat."""
        try:
            write_whole(self._path, json.dumps(vars(beat), ensure_ascii=False))
        except OSError as e:
            self.write_error = str(e)

    def check(self, mine: Beat) -> None:
        """Look for a stall, as `watch` says."""
        if self._watch is None or not mine.inside:
            return
        timeout_s, on_stall = self._watch
        if mine.time_s - mine.progress_s < timeout_s:
            return
        silent_s = max(3 * self._interval_s, min(SILENT_S, timeout_s / 2))
        others = [b for b in read_heartbeats(self._path.parent) if b.rank != mine.rank]
        verdict = find_guilty([mine, *others], mine.time_s, mine.rank, silent_s=silent_s)
        if verdict.stalled_s >= timeout_s:
            self._watch = None
            on_stall(verdict)

    def _run(self) -> None:
        while not self._ending.wait(self._interval_s):
            beat = self.beat(self.now())
            self.write(beat)
            self.check(beat)


def read_heartbeats(folder: Path) -> list[Beat]:
    """The last beat of each rank that has one, by rank. Files that cannot be read are passed over."""
    beats = [beat for path in folder.glob("rank*.json") if (beat := read_beat(path))]
    return sorted(beats, key=lambda b: b.rank)


def read_beat(path: Path) -> Beat | None:
    """The last beat in one file, if it can be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        beat = Beat(**(data | {"ranks": tuple(data["ranks"])}))
        return beat if fits(beat) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
