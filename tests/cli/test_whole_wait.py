"""The last line of `generate` tells how long the user has waited, and for what."""

import json
import os
import time
from pathlib import Path

import pytest

from opensora_launch.cli import start
from opensora_launch.request.flags import parse
from tests.ranks import run_command


def test_the_whole_wait_is_said() -> None:
    """Imports and plan before the ranks record, and their end and the report after that."""
    parts = {"earlier": 10.0, "start": 21.0, "load": 3.0, "denoise": 5.0, "end": 11.0}
    known, unknown = {"wait": {"total_s": 50.0, "parts": parts}}, {"wait": None}
    assert start.waited(known, since_s=1000.0, now_s=1051.0) == "done in 50 s: start 31, work 8, end and report 11"
    assert start.waited(unknown, since_s=1100.0, now_s=1150.0) == "done in 50 s"


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
    assert (code, lines[0]) == (0, f"making 1 image in {os.path.realpath(run)}"), err
    assert lines[1] == f"watch it: opensora-launch top {os.path.realpath(run)}"
    assert lines[-4] == f"{os.path.realpath(run)}/samples/0000_0.png"
    assert lines[-3] == f"report: {os.path.realpath(run)}/report.html"
    wait = json.loads((run / "report.json").read_text())["wait"]  # the same number as on the page
    assert lines[-2].startswith(f"done in {wait['total_s']:.0f} s: start {wait['parts']['start']:.0f}, work ")
    assert lines[-2].endswith(f"end and report {wait['parts']['end']:.0f}")
    assert lines[-1] == f"run: {os.path.realpath(run)}"
