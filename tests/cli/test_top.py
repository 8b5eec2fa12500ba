"""top: what it says of ranks that work, that have ended, and that were killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from opensora_launch.cli import main
from opensora_launch.cli.top_table import rank_table
from opensora_launch.cli.view import RunView
from opensora_launch.machine import processes
from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.live import TAIL_BYTES
from opensora_launch.runs.state import Launched, is_over, read_attempts, record_launch
from opensora_launch.telemetry.samples import read_samples
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import made_run, on_gpus, sampled

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
    assert head.startswith("2 of 2 ranks working, 49% done after ")
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


def ranks_up(attempt: Path, count: int) -> list[subprocess.Popen[bytes]]:
    """Processes of this host that write the heartbeats of ranks."""
    started, host = [], socket.gethostname()
    for rank in range(count):
        argv = [sys.executable, "-c", WORK, str(attempt / f"heartbeat/rank{rank}.json"), str(rank), host]
        started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}))
    for process in started:
        assert process.stdout
        process.stdout.readline()
        process.stdout.close()
    return started


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGSTOP)
    while not processes.is_stopped(process.pid):
        time.sleep(0.01)


def test_ranks_that_are_stopped_are_suspended(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither lost nor running, in `top` and in `status`; and `cancel` ends them."""
    attempt, host = prepare_attempt(["--prompt", "a", "model=tiny"], Machine("cpu", 1, 2, 2)), socket.gethostname()
    started, run = ranks_up(attempt.path, 2), str(attempt.run)

    def said(verb: str, *words: str) -> str:
        assert main([verb, run, *words]) == 0
        return capsys.readouterr().out

    with ExitStack() as stack:
        for process in started:
            stack.callback(process.wait)
            stack.callback(process.kill)
        stop(started[1])
        head, _, one, two = said("top", "--once").splitlines()
        assert head.startswith("1 of 2 ranks working, 1 suspended, 0% done")
        assert (one.split()[:3], two.split()[:5]) == (["0", host, "denoise"], ["1", host, "suspended", "in", "denoise"])
        status = said("status")
        assert "attempt 0: running\n" in status
        assert f"rank 0 on {host}: running, denoise" in status
        assert f"rank 1 on {host}: suspended, denoise" in status
        stop(started[0])
        assert said("top", "--once").startswith("0 of 2 ranks working, 2 suspended, 0% done")
        assert "attempt 0: suspended\n" in said("status")
        said("cancel")
        assert [process.wait() for process in started] == [-signal.SIGTERM] * 2


def test_ranks_of_a_job_that_slurm_suspends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of other hosts, silent for long or not yet: squeue tells."""
    run = made_run(tmp_path, "a", 2)
    attempt = run / "attempts/0"
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for launched in (Launched("slurm", job="7"), Launched("srun", "login", 1, 1, allocation="7")):
        record_launch(AttemptDir(attempt), launched)
        for rank in range(2):
            beat = Beat(rank, "n1", 1, time.time() - 900, "running", "denoise", "0000_0", 24, 50, 0, 1)
            (attempt / "heartbeat").mkdir(exist_ok=True)
            (attempt / f"heartbeat/rank{rank}.json").write_text(json.dumps(asdict(beat)))
        for state, said in (("SUSPENDED", "0 of 2 ranks working, 2 suspended"), ("RUNNING", "2 of 2 ranks working")):
            squeue = tmp_path / "bin/squeue"
            squeue.write_text(f"#!/bin/sh\necho '7|{state}|n1|None|x'\n")
            squeue.chmod(0o755)
            assert main(["top", str(run), "--once"]) == 0
            assert capsys.readouterr().out.startswith(said)


def test_top_ends_where_all_were_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The launcher and its ranks, by SIGKILL: nobody writes a last word, and their beats are fresh."""
    run = made_run(tmp_path, "a", 2)
    attempt = run / "attempts/0"
    host = socket.gethostname()
    started = ranks_up(attempt, 2)
    launcher = started[0].pid  # stands for it: a process with an id and a start
    record_launch(AttemptDir(attempt), Launched("torchrun", host, launcher, processes.start_ticks(launcher)))
    assert main(["top", str(run), "--once"]) == 0
    assert capsys.readouterr().out.startswith("2 of 2 ranks working, 0% done")
    started[1].kill()
    started[1].wait()
    assert main(["top", str(run), "--once"]) == 0
    head, _, one, two = capsys.readouterr().out.splitlines()
    assert head.startswith("1 of 2 ranks working, 1 lost, 0% done")
    assert (one.split()[:3], two.split()[:5]) == (["0", host, "denoise"], ["1", host, "lost", "in", "denoise"])
    started[0].kill()
    started[0].wait()
    assert is_over(read_attempts(RunDir(run))[-1], alive=False), "at once, though their heartbeats are fresh"
    assert main(["top", str(run)]) == 0
    assert capsys.readouterr().out.startswith("all 2 ranks have ended, 2 lost")


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
    record_launch(AttemptDir(run / "attempts/0"), launched)
    assert not is_over(read_attempts(RunDir(run))[-1], alive=False)
    (run / "attempts/0/heartbeat").mkdir()
    beat = Beat(0, "host-b", 1, time.time() - 60, "running", "denoise")
    (run / "attempts/0/heartbeat/rank0.json").write_text(json.dumps(asdict(beat)))
    assert is_over(read_attempts(RunDir(run))[-1], alive=False)
    assert not is_over(read_attempts(RunDir(run))[-1], alive=True)


def ranks_at_work(attempt: Path, count: int) -> None:
    (attempt / "heartbeat").mkdir()
    for rank in range(count):
        beat = Beat(rank, "host-a", 1, time.time(), "running", "denoise", "0000_0", 24, 50, 0, 1)
        (attempt / f"heartbeat/rank{rank}.json").write_text(json.dumps(asdict(beat)))


def test_use_memory_and_power_of_each_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The driver's order of the GPUs is not the ranks', and one of them tells no power."""
    run = made_run(tmp_path, "a", 3)
    attempt = run / "attempts/0"
    ranks_at_work(attempt, 3)
    on_gpus(attempt, ["GPU-a", "GPU-b", "GPU-elsewhere"])
    one, other = {"gpu": 0, "util": 0.12, "memory_used_bytes": 1 << 30}, {"gpu": 1, "util": 0.97, "power_w": 401.7}
    old = {"time_s": 1.0, "gpus": [{"gpu": 0, "util": 1.0}, {"gpu": 1, "util": 1.0}]}
    now = {"time_s": 1.25, "gpus": [one, other | {"memory_used_bytes": 61.5 * 2**30}]}
    sampled(attempt, "host-a", ["GPU-b", "GPU-a"], [old, now])
    assert main(["top", str(run), "--once"]) == 0
    _, head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["rank", "host", "doing", "step", "use", "memory", "power", "stuck", "since"]
    assert [row.split()[5:] for row in rows] == [["97%", "61.5", "GiB", "402", "W"], ["12%", "1.0", "GiB"], []]
    assert rows[0].index("61.5") == rows[1].index("1.0") == head.index("memory")


def terminal_rows(attempt: Path, width: int, *beats: Beat) -> list[str]:
    """The table on a terminal of so many columns, without its colours."""
    view = RunView(AttemptDir(attempt))
    view.look(beats)
    with StringIO() as out:
        Console(file=out, width=width).print(rank_table(view, width))
        return [line.rstrip() for line in out.getvalue().splitlines()]


def test_the_table_of_a_terminal_has_bars_and_totals(tmp_path: Path) -> None:
    """A reading that was not due in the last sample is the one before; a rank that has ended has none."""
    attempt = made_run(tmp_path, "a", 3) / "attempts/0"
    uuids = [f"GPU-{n}" for n in range(3)]
    on_gpus(attempt, uuids)
    gpus = [{"gpu": n, "util": 0.5 * (n + 1), "memory_used_bytes": 20 << 30, "power_w": 300.0} for n in range(3)]
    before = [{"gpu": n, "temperature_c": 60 + n, "sm_mhz": 1980 - n} for n in range(3)]
    file = sampled(attempt, "h", uuids, [{"time_s": 1.0, "gpus": before}, {"time_s": 1.2, "gpus": gpus}])
    file.write_text(file.read_text().replace('"name": "Stub GPU"', f'"name": "Stub GPU", "memory_bytes": {80 << 30}'))
    first = Beat(0, "h", 1, time.time(), "running", "denoise", "0000_0", 24, 50, 0, 1)
    beats = [first, replace(first, rank=1), replace(first, rank=2, state="done")]
    narrow = terminal_rows(attempt, 80, *beats)
    assert [row.split() for row in narrow] == [
        ["rank", "doing", "step", "use", "memory", "power", "temp", "clock"],
        ["0", "denoise", "0000_0", "25/50", "50%", "20.0", "GiB", "300", "W", "60", "°C", "1980", "MHz"],
        ["1", "denoise", "0000_0", "25/50", "100%", "20.0", "GiB", "300", "W", "61", "°C", "1979", "MHz"],
        ["2", "ended"],
        ["all", "75%", "40.0", "GiB", "600", "W", "61", "°C", "1979", "MHz"],
    ]
    wide = terminal_rows(attempt, 140, *beats)
    assert "█████░░░░░ 50%   ██░░░░░░░░ 20.0 GiB" in wide[1]
    assert "█" not in wide[3]
    assert len(terminal_rows(attempt, 80, *(replace(beat, state="done") for beat in beats))) == 4
    assert "host" in terminal_rows(attempt, 140, *beats, replace(first, rank=3, host="other"))[0]


def test_use_and_memory_of_ranks_on_cpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CPU seconds over the last four samples; a rank that was seen once has memory alone."""
    run = made_run(tmp_path, "a", 3)
    ranks_at_work(run / "attempts/0", 3)
    spent = (0.0, 10.0, 10.2, 10.7, 11.35)
    ranks = [[{"rank": 0, "cpu_s": cpu_s, "memory_bytes": (n + 1) << 29}] for n, cpu_s in enumerate(spent)]
    ranks[-1].append({"rank": 1, "cpu_s": 3.0, "memory_bytes": 3 << 30})
    sampled(run / "attempts/0", "host-a", [], [{"time_s": n / 4, "ranks": seen} for n, seen in enumerate(ranks)])
    assert main(["top", str(run), "--once"]) == 0
    _, _, *rows = capsys.readouterr().out.splitlines()
    assert [row.split()[5:] for row in rows] == [["180%", "2.5", "GiB"], ["3.0", "GiB"], []]


def test_the_last_sample_of_a_long_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After hours of a run; its last line is being written."""
    run = made_run(tmp_path, "a", 1)
    attempt = run / "attempts/0"
    ranks_at_work(attempt, 1)
    on_gpus(attempt, ["GPU-a"])
    samples = [{"time_s": n / 4, "gpus": [{"gpu": 0, "util": 0.5, "power_w": n / 100}]} for n in range(20_000)]
    path = sampled(attempt, "host-a", ["GPU-a"], samples)
    with path.open("a") as file:
        file.write('{"kind": "sample", "time_s": 50')
    assert path.stat().st_size > 20 * TAIL_BYTES
    node = read_samples(path, TAIL_BYTES)
    assert node is not None
    assert (node.samples[-1]["time_s"], node.bad_lines) == (19_999 / 4, 1)
    assert len(node.samples) < 1000
    assert main(["top", str(run), "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[5:] == ["50%", "200", "W"]
