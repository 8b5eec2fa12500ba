"""top: what it says of ranks that work, that have ended, and that were killed."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.cli.top import is_over
from opensora_launch.launch import processes
from opensora_launch.launch.run_state import Launched, read_attempts, record_launch
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import made_run

ROOT = Path(__file__).parents[2]


def test_top_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, "a", 2)
    beats = run / "attempts/0/heartbeat"
    beats.mkdir()
    now = time.time()
    first = Beat(0, "host-a", 1, now, "running", "denoise", "0000_0", 24, 50, 0, 1, "ulysses", (0, 1), 7, True, now - 9)
    second = replace(first, rank=1, inside=False, step=25)
    for beat in (first, second):
        (beats / f"rank{beat.rank}.json").write_text(json.dumps(asdict(beat)))
    assert main(["top", str(run), "--once"]) == 0
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert head.startswith("2 of 2 ranks at work, 49% done after ")
    assert one.split() == ["0", "host-a", "denoise", "0000_0", "25/50", "9", "s", "in", "ulysses"]
    assert two.split() == ["1", "host-a", "denoise", "0000_0", "26/50"]
    for beat in (first, second):
        (beats / f"rank{beat.rank}.json").write_text(json.dumps(asdict(replace(beat, state="done"))))
    assert main(["top", str(run)]) == 0  # ends by itself
    assert capsys.readouterr().out.startswith("all 2 ranks have ended")
    assert main(["top", str(tmp_path)]) == 2


WORK = """
import sys, time
from pathlib import Path
from opensora_launch.telemetry.heartbeat import Heartbeat
beat = Heartbeat(Path(sys.argv[1]), rank=int(sys.argv[2]), host=sys.argv[3], videos=1)
beat.phase = "denoise"
beat.start()
print("up", flush=True)
time.sleep(100)
"""


def test_top_ends_where_all_were_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher and its ranks, by SIGKILL: nobody writes a last word, and their beats are fresh."""
    run = made_run(tmp_path, "a", 2)
    attempt = run / "attempts/0"
    host = socket.gethostname()
    started = []
    for rank in range(2):
        argv = [sys.executable, "-c", WORK, str(attempt / f"heartbeat/rank{rank}.json"), str(rank), host]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}))
    for process in started:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
    launcher = started[0].pid  # stands for it: a process with an id and a start
    record_launch(attempt, Launched("torchrun", host, launcher, processes.start_ticks(launcher)))
    assert main(["top", str(run), "--once"]) == 0
    assert capsys.readouterr().out.startswith("2 of 2 ranks at work, 0% done")
    started[1].kill()
    started[1].wait()
    assert main(["top", str(run), "--once"]) == 0
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert head.startswith("1 of 2 ranks at work, 1 of them lost without a word, 0% done")
    assert (one.split()[:3], two.split()[:5]) == (["0", host, "denoise"], ["1", host, "lost", "in", "denoise"])
    started[0].kill()
    started[0].wait()
    begun = time.monotonic()
    assert main(["top", str(run)]) == 0
    assert time.monotonic() - begun < 10
    assert capsys.readouterr().out.startswith("all 2 ranks have ended, 2 of them lost without a word")


def test_top_goes_on_with_the_next_attempt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_run(tmp_path, "a", 1)
    shutil.copytree(run / "attempts/0", run / "attempts/10")
    for number, step in ((0, 3), (10, 7)):
        (run / f"attempts/{number}/heartbeat").mkdir()
        beat = Beat(0, "host-b", 1, time.time(), "running", "denoise", "0000_0", step, 50, 0, 1)
        (run / f"attempts/{number}/heartbeat/rank0.json").write_text(json.dumps(asdict(beat)))
    assert main(["top", str(run), "--once"]) == 0
    assert " 8/50" in capsys.readouterr().out


@pytest.mark.parametrize("launched", [Launched("torchrun", "another-host", 1, 1), Launched("slurm", job="7")])
def test_top_waits_where_ranks_are_still_to_come(tmp_path: Path, launched: Launched) -> None:
    """Of another host's launcher and of a job that no Slurm knows here, only the ranks tell."""
    run = made_run(tmp_path, "a", 1)
    record_launch(run / "attempts/0", launched)
    assert not is_over(read_attempts(run)[-1])
    (run / "attempts/0/heartbeat").mkdir()
    beat = Beat(0, "host-b", 1, time.time() - 60, "running", "denoise")
    (run / "attempts/0/heartbeat/rank0.json").write_text(json.dumps(asdict(beat)))
    assert is_over(read_attempts(run)[-1])
