"""What a run is doing, from rank 0's heartbeat: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from opensora_launch.telemetry.stall import Beat

LINE_EVERY_S = 30.0
LARGE_BYTES = 1e8  # of weights, whose loading one may want to watch
OnBeats = Callable[[Sequence[Beat]], None]


@contextmanager
def progress(stream: TextIO = sys.stderr) -> Iterator[OnBeats]:
    """A function to give heartbeats to, which shows them."""
    if not stream.isatty():
        yield _plain_lines(stream)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    shown = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    columns = (*shown, TextColumn("ETA"), TimeRemainingColumn())
    # No thread of rich: the launcher starts the ranks from here, and a fork with threads is a risk.
    with Progress(*columns, console=Console(file=stream), auto_refresh=False) as bar:
        task = bar.add_task("starting", total=None)
        most = 0.0

        def show(beats: Sequence[Beat]) -> None:
            nonlocal most
            if beats:
                done, total = fraction(beats[0])
                most = max(most, done)  # a video that is denoised and not yet saved has no step
                bar.update(task, description=describe(beats), completed=most, total=total)
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


def fraction(beat: Beat) -> tuple[float, float | None]:
    """(done, total) in videos; the steps of the present one count as parts of it. No total before there is work."""
    if not beat.videos:
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
        said = describe(beats)
        phase = said.partition(",")[0]
        if phase != last_phase or now - last_s >= LINE_EVERY_S:
            last_phase, last_s = phase, now
            print(said, file=stream, flush=True)

    return show
