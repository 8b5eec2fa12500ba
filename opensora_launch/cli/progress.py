"""What a run is doing, from the ranks' heartbeats and samples: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from typing import TextIO

from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.live import Use, rank_uses, share_done, together, waiting
from opensora_launch.telemetry.stall import Beat

LINE_EVERY_S = 30.0
LOOK_S = 1.0  # between two looks at the samples
LEAST_SHARE = 0.02  # done in sight, before the rest is guessed
BAR_CHARS = 8  # at least: a blank, a dash, the percentage, and a blank on both sides of it
LARGE_BYTES = 1e8  # of weights, whose loading one may want to watch
OnBeats = Callable[[AttemptDir, Sequence[Beat]], None]


@contextmanager
def progress(stream: TextIO = sys.stderr) -> Iterator[OnBeats]:
    """A function to give an attempt's folder and its heartbeats to, which shows them."""
    if not stream.isatty():
        yield _plain_lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    bar_column = BarColumn(None, table_column=Column(ratio=1))  # what the words leave of the one line
    columns = (TextColumn("{task.description}"), bar_column, TaskProgressColumn(), TextColumn("{task.fields[more]}"))
    # No thread of rich: the launcher starts the ranks from here, and a fork with threads is a risk.
    with Progress(*columns, console=Console(file=stream), auto_refresh=False, expand=True) as bar:
        task = bar.add_task("starting", total=None, more="")
        paces, use, used_s = dict[AttemptDir, Pace](), Use(), -LOOK_S

        def show(attempt: AttemptDir, beats: Sequence[Beat]) -> None:
            nonlocal use, used_s
            if beats:
                now = time.monotonic()
                pace = paces.setdefault(attempt, Pace(now))
                pace.look(beats, now)
                if now - used_s >= LOOK_S:
                    use, used_s = together(rank_uses(attempt, beats).values()), now
                doing = describe(beats).replace(", video", "").replace(" of ", "/")
                more = _fitting(_short_words(beats, use, pace, now), bar.console.width - len(doing) - BAR_CHARS)
                total = None if pace.share is None else 1.0
                bar.update(task, description=doing, completed=pace.share or 0.0, total=total, more=more)
            bar.refresh()

        yield show


def describe(beats: Sequence[Beat]) -> str:
    """Phase, video and step of the first rank in words; while weights load, how many bytes of all ranks' have come."""
    beat = beats[0]
    if beat.state != "running" or (beat.videos and beat.videos_done == beat.videos):
        return "finishing"
    reading = [b for b in beats if b.phase == "load"]
    come, whole = sum(b.loaded_bytes for b in beats), sum(b.load_bytes for b in beats)
    if reading and whole >= LARGE_BYTES:
        took = max(b.time_s for b in reading) - min(b.load_since_s for b in reading)
        return f"load, {come / 1e9:.1f} of {whole / 1e9:.1f} GB, {come / 1e9 / max(took, 1e-3):.1f} GB/s"
    video = f", video {min(beat.videos_done + 1, beat.videos)} of {beat.videos}" if beat.videos else ""
    step = f", step {beat.step + 1} of {beat.steps}" if beat.step is not None and beat.steps else ""
    return f"{beat.phase}{video}{step}"


@dataclass
class Pace:
    """Of an attempt that is watched: what is done, which never goes back, and how fast since work was first seen."""

    started_s: float
    share: float | None = None
    work: tuple[float, float] | None = None  # when a step was first seen, and what was done by then

    def look(self, beats: Sequence[Beat], now: float) -> None:
        share = share_done(beats)
        if share is None:
            return
        self.share = max(share, self.share or 0.0)  # a video that is denoised and not yet saved has no step
        if self.work is None and any(beat.step is not None for beat in beats):
            self.work = now, self.share

    def to_go_s(self, now: float) -> float | None:
        """If the rest takes as long as what was seen of the work, of which loading is no part; None of no rest."""
        if self.work is None or self.share is None or self.share == 1 or self.share - self.work[1] < LEAST_SHARE:
            return None
        began_s, before = self.work
        return (now - began_s) * (1 - self.share) / (self.share - before)


def _short_words(beats: Sequence[Beat], use: Use, pace: Pace, now: float) -> Iterator[str]:
    """For a terminal of 80 columns: time, who waits for whom, and use, memory and power."""
    to_go_s = pace.to_go_s(now)
    yield _clock(now - pace.started_s) if to_go_s is None else f"ETA {_clock(to_go_s)}"
    count, slowest = waiting(beats, time.time())
    if count:
        yield f"{count} wait" + ("" if slowest is None else f" for {slowest}")
    busy, memory, power = use.cells
    yield from filter(None, [busy and f"{'GPU' if use.of_gpu else 'CPU'} {busy}", memory, power])


def _long_words(beats: Sequence[Beat], use: Use, pace: Pace, now: float) -> Iterator[str]:
    """The same in words, for a pipe."""
    yield describe(beats)
    to_go_s = pace.to_go_s(now)
    if to_go_s is not None:
        yield f"about {to_go_s:.0f} s to go"
    busy, memory, power = use.cells
    said = [busy and f"{busy} {'busy' if use.of_gpu else 'of a core'}", memory and f"{memory} at most", power]
    if any(said):
        yield f"{'GPUs' if use.of_gpu else 'ranks'}: {', '.join(filter(None, said))}"
    count, slowest = waiting(beats, time.time())
    if count:
        yield f"{count} of {len(beats)} ranks wait" + ("" if slowest is None else f" for rank {slowest}")


def _fitting(words: Iterable[str], chars: int) -> str:
    """As many of the first ones as there is room for."""
    return max((said for said in accumulate(words, "{} {}".format) if len(said) <= chars), key=len, default="")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _plain_lines(stream: TextIO) -> OnBeats:
    paces, last_phase, last_s = dict[AttemptDir, Pace](), "", -LINE_EVERY_S

    def show(attempt: AttemptDir, beats: Sequence[Beat]) -> None:
        nonlocal last_phase, last_s
        if not beats:
            return
        now = time.monotonic()
        pace = paces.setdefault(attempt, Pace(now))
        pace.look(beats, now)
        phase = describe(beats).partition(",")[0]
        if phase != last_phase or now - last_s >= LINE_EVERY_S:
            last_phase, last_s = phase, now
            use = together(rank_uses(attempt, beats).values())
            print("; ".join(_long_words(beats, use, pace, now)), file=stream, flush=True)

    return show
