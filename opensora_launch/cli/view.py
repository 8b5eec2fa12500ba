"""A moving view of a run. rich draws it on a terminal; a pipe gets plain lines.

`generate` and `bench` show a bar for all ranks of an attempt; `top` adds a table (top_table.py).
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, TextIO

from opensora_launch.cli.terminal import can_redraw
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.alive import rank_state
from opensora_launch.runs.live import DeviceUse, rank_metas, rank_uses, together, waiting
from opensora_launch.runs.progress import Pace
from opensora_launch.telemetry.moves import Moves
from opensora_launch.telemetry.stall import Beat

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

LINE_EVERY_S = 30.0  # in a pipe
USE_EVERY_S = 1.0  # between two reads of the samples
SPARE_CHARS = 8  # of the bar's line: for a bar of two characters, the percentage, and blanks
LARGE_BYTES = 1e8  # of weights, whose loading is worth watching
OnBeats = Callable[[AttemptDir, Sequence[Beat]], None]


@dataclass
class RunView:
    """What a run does at this moment. `look` reads its files again."""

    attempt: AttemptDir
    since_s: float = field(default_factory=time.monotonic)
    beats: Sequence[Beat] = ()
    uses: dict[int, DeviceUse] = field(default_factory=dict)
    uses_s: float = float("-inf")
    suspended: bool = False  # by Slurm, all ranks
    stopped: bool = False  # by Ctrl-C, another signal or `cancel`, all ranks

    def __post_init__(self) -> None:
        self.pace = Pace([self.attempt])
        self._moves = Moves()
        self._epoch_s = time.time() - self.since_s  # a jump of the wall clock must not change the time left

    def look(self, beats: Sequence[Beat]) -> None:
        self.beats, now = self._moves.own_time(beats), time.monotonic()
        self.pace.look(beats)
        if now - self.uses_s >= USE_EVERY_S:
            self.uses, self.uses_s = rank_uses(self.attempt, beats), now

    def state(self, beat: Beat) -> str:
        """The state of a rank."""
        state = rank_state(beat)
        if self.stopped and state != "done":
            return "stopped"
        return "suspended" if self.suspended and state in ("running", "lost") else state

    @property
    def seconds_left(self) -> float | None:
        """None if no rank works, or if one is dead or suspended: the others will not get on without it."""
        states = {self.state(beat) for beat in self.beats}
        works = "running" in states and not states & {"lost", "failed", "suspended"}
        return self.pace.seconds_left(self._now()) if works else None

    def _now(self) -> float:
        """Seconds of the epoch, by a clock that never jumps."""
        return time.monotonic() + self._epoch_s

    def bar(self, width: int = 0) -> "Table":
        """One line: what the first rank does, a bar, and as many words as there is room for in `width` characters."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        share = self.pace.share
        bar = ProgressBar(total=None if share is None else 1.0, completed=share or 0.0)
        doing = describe(self.beats).replace(", video", "").replace(", image", " image").replace(" of ", "/")
        room = width - len(doing) - SPARE_CHARS
        fitting = [words for words in accumulate(self._short_words(), "{} {}".format) if len(words) <= room]
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            line.add_column(ratio=ratio, no_wrap=True)
        percent = "" if share is None else f"{share:>4.0%}"
        line.add_row(Text(doing), bar, percent, Text(max(fitting, key=len, default="")))
        return line

    def summary(self) -> str:
        """How many ranks work, the share of the videos that is done, and the time left."""
        states = [self.state(beat) for beat in self.beats]
        running = states.count("running")
        lines = [f"{count} {how}" for how in ("failed", "lost", "stopped", "suspended") if (count := states.count(how))]
        if not running and "suspended" not in states:
            over = f"all {len(states)} ranks have ended" if len(states) > 1 else "the rank has ended"
            return ", ".join([over, *lines])
        started = min((meta.start_epoch_s for meta in rank_metas(self.attempt).values()), default=self._now())
        left = self.seconds_left
        words = [f"{running} of {len(states)} ranks working", *lines]
        words.append(f"{self.pace.share or 0.0:.0%} done after {self._now() - started:.0f} s")
        return ", ".join(words if left is None else [*words, f"about {left:.0f} s left"])

    def _short_words(self) -> Iterator[str]:
        """For a terminal of 80 columns: time, which ranks wait for which, and use, memory and power."""
        left = self.seconds_left
        yield clock(time.monotonic() - self.since_s) if left is None else f"ETA {clock(left)}"
        count, slowest = waiting(self.beats, time.monotonic())
        if count:
            yield f"{count} wait" + ("" if slowest is None else f" for {slowest}")
        use = together(self.uses.values())
        busy, memory, power = use.cells
        yield from filter(None, [busy and f"{'GPU' if use.of_gpu else 'CPU'} {busy}", memory, power])

    def long_words(self) -> Iterator[str]:
        """The same in words, for a pipe."""
        yield describe(self.beats)
        if (left := self.seconds_left) is not None:
            yield f"about {left:.0f} s left"
        use = together(self.uses.values())
        busy, memory, power = use.cells
        used = [busy and f"{busy} {'busy' if use.of_gpu else 'of a core'}", memory and f"{memory} at most", power]
        if any(used):
            yield f"{'GPUs' if use.of_gpu else 'ranks'}: {', '.join(filter(None, used))}"
        count, slowest = waiting(self.beats, time.monotonic())
        if count:
            yield f"{count} of {len(self.beats)} ranks wait" + ("" if slowest is None else f" for rank {slowest}")


def describe(beats: Sequence[Beat]) -> str:
    """Phase, video and step of the first rank at work; while weights load, how much of all ranks' bytes is read."""
    beat = next((b for b in beats if b.state == "running"), beats[0])
    if beat.state in ("failed", "preempted"):
        return beat.state
    if beat.state != "running" or (beat.videos and beat.videos_done == beat.videos and not beat.images):
        return "finishing"
    reading = [b for b in beats if b.phase == "load"]
    loaded, whole = sum(b.loaded_bytes for b in beats), sum(b.load_bytes for b in beats)
    if reading and whole >= LARGE_BYTES:
        took = max(b.time_s for b in reading) - min(b.load_since_s for b in reading)
        return f"load, {loaded / 1e9:.1f} of {whole / 1e9:.1f} GB, {loaded / 1e9 / max(took, 1e-3):.1f} GB/s"
    video = f", {beat.makes} {min(beat.videos_done + 1, beat.videos)} of {beat.videos}" if beat.videos else ""
    step = f", step {beat.step + 1} of {beat.steps}" if beat.step is not None and beat.steps else ""
    return f"{beat.phase}{video}{step}"


@contextmanager
def progress(stream: TextIO = sys.stderr) -> Iterator[OnBeats]:
    """A function that shows an attempt, given its folder and its heartbeats.

    On a terminal it is a bar. In a pipe it prints a line for each new phase, and every 30 seconds.
    """
    views = dict[AttemptDir, RunView]()
    phase, last_s, since_s = "", float("-inf"), time.monotonic()
    with screen(stream, stays=False) as live:

        def show(attempt: AttemptDir, beats: Sequence[Beat]) -> None:
            nonlocal phase, last_s
            if not beats:
                phase = ""
                if live:
                    words = "no rank is at work" if views else "starting"
                    live.update(f"{words}, {clock(time.monotonic() - since_s)}", refresh=True)
                return
            view = views.setdefault(attempt, RunView(attempt))
            view.look(beats)
            if live:
                phase = describe(beats)
                live.update(view.bar(live.console.width), refresh=True)
                return
            now, doing = time.monotonic(), describe(beats).partition(",")[0]
            if doing != phase or now - last_s >= LINE_EVERY_S:
                phase, last_s = doing, now
                print("; ".join(view.long_words()), file=stream, flush=True)

        yield show


@contextmanager
def screen(stream: TextIO, *, stays: bool = True) -> Iterator["Live | None"]:
    """A part of the terminal that each `update(..., refresh=True)` draws again; None if nothing can be drawn again.

    At the end, what was drawn last `stays`, or is cleared.
    """
    if not can_redraw(stream):
        yield None
        return
    from rich.console import Console
    from rich.live import Live

    # Without rich's thread: the launcher forks the ranks while the screen is there, and a fork with threads is a risk.
    with Live(console=Console(file=stream, highlight=False), auto_refresh=False, transient=not stays) as live:
        yield live


def clock(seconds: float) -> str:
    """1:02:03, with the days before it if there are any."""
    return str(timedelta(seconds=round(seconds)))
