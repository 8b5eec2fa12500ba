"""The last line of `generate` tells how long the user has waited, and for what."""

import os
import time
from pathlib import Path

import pytest

from opensora_launch.cli import start
from opensora_launch.request.flags import parse
from tests.ranks import run_command


def test_the_whole_wait_is_said() -> None:
    """Imports and plan before the ranks record, and their end and the report after that."""
    first, second = ({"started_epoch_s": 1031.0 + 100 * n, "wall_s": 8.0} for n in range(2))
    one, two = {"attempts": [first]}, {"attempts": [first, second]}
    assert start.waited(one, since_s=1000.0, now_s=1050.0) == "done in 50 s: start 31, work 8, end and report 11"
    assert start.waited(two, since_s=1100.0, now_s=1150.0) == "done in 50 s"
    assert start.waited({"attempts": [first | {"started_epoch_s": None}]}, 1000.0, 1050.0) == "done in 50 s"


def test_it_counts_from_the_moment_the_command_line_is_read() -> None:
    """Not from the start of the process: scripts/run becomes the launcher after it has installed everything."""
    before = time.time()
    assert before <= parse("report", (), []).since_s <= time.time()


@pytest.mark.slow
def test_what_a_run_says_first_and_last(empty_folder: Path) -> None:
    words = ["model=tiny", "launcher=inline", "topology=cpu1", "sampling.num_steps=1", "video.num_frames=1"]
    code, out, err = run_command(empty_folder, "generate", *words, "--prompt", "x")
    (run,) = (empty_folder / "runs").iterdir()
    lines = out.splitlines()
    assert (code, lines[0]) == (0, f"making 1 video in {os.path.realpath(run)}"), err
    assert lines[1] == f"watch it: opensora-launch top {os.path.realpath(run)}"
    assert lines[-4] == f"{os.path.realpath(run)}/samples/0000_0.png"
    assert lines[-3] == f"report: {os.path.realpath(run)}/report.html"
    assert lines[-2].startswith("done in ")
    assert lines[-1] == f"run: {os.path.realpath(run)}"
