"""The line of `generate` that moves on a terminal, and what a terminal that cannot move it gets."""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

import pytest

from opensora_launch.cli.view import progress
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import on_gpus, sampled, work_began
from tests.cli.test_start import beat, stuck_ranks


def on_a_terminal(folder: Path, *looks: list[Beat]) -> list[str]:
    """The lines that a terminal of 80 columns gets, without their colours."""
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as stream, progress(stream) as show:
        for beats in looks:
            show(AttemptDir(folder), beats)
    data = b""
    with suppress(OSError):  # the other end is closed
        while part := os.read(ours, 4096):
            data += part
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode()).replace("\n", "\r").split("\r")


def test_a_terminal_gets_a_bar_that_never_goes_back(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = on_a_terminal(empty_folder, [beat(step=3, steps=4, videos=1)], [beat("vae", videos=1)])
    assert [line for line in lines if line.startswith("denoise 1/1, step 4/4 ━")]
    last = [line for line in lines if line.startswith("vae 1/1 ━")]
    assert last
    assert all("99%" in line for line in last)
    assert lines[-1] == "", "the last line of a run that is over is cleared"


def test_a_dumb_terminal_gets_the_lines_of_a_pipe(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert on_a_terminal(empty_folder, [beat("vae", videos=1)]) == ["vae, video 1 of 1", "", ""]


def test_the_start_shows_how_long_it_takes(empty_folder: Path) -> None:
    assert any(re.fullmatch(r"starting, 0:00:\d\d *", line) for line in on_a_terminal(empty_folder, []))


@pytest.mark.parametrize(
    ("count", "videos", "ending"), [(8, 4, "GPU 97% 61.5 GiB 5.2 kW"), (64, 1000, "GPU 97% 61.5 GiB")]
)
def test_the_bar_is_one_line_of_80_columns(
    count: int, videos: int, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What there is no room for is left out, from the end."""
    monkeypatch.setenv("COLUMNS", "80")
    attempt = prepare_attempt(["--prompt", "a", "--prompt", "b", "model=tiny"], Machine("cpu", 1, 2, 2)).path
    uuids = [f"GPU-{n}" for n in range(count)]
    on_gpus(attempt, uuids)
    work_began(attempt, time.time() - 5, 0, rank=count)
    gpu = {"util": 0.97, "memory_used_bytes": 61.5 * 2**30, "power_w": 650.0}
    sampled(attempt, "h", uuids, [{"time_s": 1.0, "gpus": [gpu | {"gpu": n} for n in range(count)]}])
    more = {"videos": videos, "steps": 50}
    looks = [stuck_ranks(count, step=step, videos_done=done, **more) for step, done in ((0, 0), (24, videos - 2))]
    lines = [line.rstrip() for line in on_a_terminal(attempt, *looks)]
    assert all(len(line) <= 80 for line in lines)
    last = [line for line in lines if line.startswith(f"denoise {videos - 1}/{videos}, step 25/50 ")]
    assert last
    assert re.search(rf"% ETA 0:00:\d\d {count - 1} wait for {count - 1} {ending}$", last[-1])
    assert "━" in last[-1]
