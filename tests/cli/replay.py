"""`python -m tests.cli.replay FOLDER`: the end of `generate` with ranks that only say what they do.

Everything that a user sees is printed by the real code: the first lines, the view of the ranks, the summary of a report
that is really built, the last lines. Only the ranks are replaced, by heartbeats and by events that were made before.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

from opensora_launch.cli import start
from opensora_launch.launch.supervise import Outcome, Task
from opensora_launch.machine.output import secure_output
from opensora_launch.request.attempt import by_hand
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LauncherKind
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import on_gpus, sampled, work_began
from tests.report.synthetic import EPOCH_S, a_plan, plain_simulation, write_run

NAME = "20261129-172000-a-red-circle"
UUIDS = ("GPU-0", "GPU-1")
GPU = {"util": 0.97, "memory_used_bytes": 61.5 * 2**30, "power_w": 650.0}


SECONDS = (0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 0.1, 0.1, 0.1)  # from one look to the next


class Clock:
    """Takes the place of time.monotonic, so that every share is the same in each replay."""

    def __init__(self) -> None:
        self.now_s = time.monotonic()

    def __call__(self) -> float:
        return self.now_s


def looks() -> list[list[Beat]]:
    """What two ranks say, from the start to the end of a run."""
    first = Beat(0, socket.gethostname(), os.getpid(), time.time(), "running", "setup", videos=1)
    steps = [replace(first, phase="denoise", video="0000_0", step=n, steps=50) for n in (0, 20, 49)]
    later = [replace(first, phase=name, video="0000_0") for name in ("vae", "save")]
    done = replace(first, state="done", phase="save", videos_done=1)
    each = [first, replace(first, phase="load"), replace(first, phase="text"), *steps, *later, done]
    return [[], *([beat, replace(beat, rank=1)] for beat in each)]


def run_of(folder: Path) -> AttemptDir:
    plan = a_plan(2, prompts=("a red circle",))
    events = plain_simulation(2).events()
    return AttemptDir(write_run(folder / NAME, plan, [events], done=["0000_0"]) / "attempts/0")


def replayed(clock: Clock, task: Task, show: Callable[[Sequence[Beat]], None]) -> Outcome:
    """Work seems to have begun ten seconds ago, and the GPUs to be read; the report gets what was recorded before."""
    files = {path: path.read_text() for path in task.attempt.all_events()}
    on_gpus(task.attempt.path, UUIDS)
    work_began(task.attempt.path, time.time() - 10, 0, rank=2)
    gpus = [GPU | {"gpu": n} for n in range(2)]
    readings = sampled(task.attempt.path, socket.gethostname(), UUIDS, [{"time_s": EPOCH_S, "gpus": gpus}])
    for seconds, beats in zip(SECONDS, looks(), strict=True):
        clock.now_s += seconds
        show(beats)
    for path in (readings, task.attempt.events(2)):
        path.unlink()
    for path, text in files.items():
        path.write_text(text)
    return Outcome(0)


if __name__ == "__main__":
    secure_output()
    attempt = run_of(Path(sys.argv[1]))
    plan = a_plan(2, prompts=("a red circle",))
    clock = Clock()
    with mock.patch.object(start, "supervise", partial(replayed, clock)), mock.patch.object(time, "monotonic", clock):
        code = start.start_run(LauncherKind.torchrun, plan, attempt, by_hand(), EPOCH_S)
    sys.stdout.flush()
    sys.exit(code)
