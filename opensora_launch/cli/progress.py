"""What a run is doing, from rank 0's heartbeat: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from opensora_launch.telemetry.stall import Beat

LINE_EVERY_S = 30.0
OnBeats = Callable[[Sequence[Beat]], None]


@contextmanager
def progress(stream: TextIO = sys.stderr) -> Iterator[OnBeats]:
    """A function to give heartbeats to, which shows them."""
    if not stream.isatty():
        yield _plain_lines(stream)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("ETA"))
    # No thread of rich: the launcher starts the ranks from here, and a fork with threads is a risk.
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=stream), auto_refresh=False) as bar:
        task = bar.add_task("starting", total=None)

        def show(beats: Sequence[Beat]) -> None:
            if beats:
                done, total = fraction(beats[0])
                bar.update(task, description=describe(beats[0]), completed=done, total=total)
            bar.refresh()

        yield show


def describe(beat: Beat) -> str:
    """Phase, video and step in words."""
    video = f", video {min(beat.videos_done + 1, beat.videos)} of {beat.videos}" if beat.videos else ""
    step = f", step {beat.step + 1} of {beat.steps}" if beat.step is not None and beat.steps else ""
    return f"{beat.phase}{video}{step}"


def fraction(beat: Beat) -> tuple[float, float | None]:
    """(done, total) in videos; the steps of the present one count as parts of it. No total before the first step."""
    if not beat.videos or (beat.step is None and not beat.videos_done):
        return 0.0, None
    part = beat.step / beat.steps if beat.step is not None and beat.steps else 0.0
    return min(beat.videos_done + part, beat.videos), float(beat.videos)


def _plain_lines(stream: TextIO) -> OnBeats:
    last_phase, last_s = "", -LINE_EVERY_S

    def show(beats: Sequence[Beat]) -> None:
        nonlocal last_phase, last_s
        if not beats:
            return
        now = time.monotonic()
        if beats[0].phase != last_phase or now - last_s >= LINE_EVERY_S:
            last_phase, last_s = beats[0].phase, now
            print(describe(beats[0]), file=stream, flush=True)

    return show
