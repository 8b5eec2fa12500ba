"""Ranks that crash, stop, are killed or interrupted: who is named, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

LAUNCHER = Path(__file__).with_name("fake_launcher.py")
ROOT = Path(__file__).parents[2]
GENEROUS_S = 120.0  # turns a hang into a failure, on a slow machine too


@pytest.fixture
def attempt(tmp_path: Path) -> Path:
    folder = tmp_path / 'it\'s a "run", über $HOME;#' / "attempts" / "0"
    for name in ("logs", "heartbeat", "telemetry"):
        (folder / name).mkdir(parents=True)
    return folder


def launch(scenario: str, attempt: Path, timeout_s: float = 60.0) -> subprocess.Popen[str]:
    argv = [sys.executable, str(LAUNCHER), scenario, str(attempt), str(timeout_s)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(launcher: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = launcher.communicate(timeout=GENEROUS_S)
    assert not err
    found: dict[str, Any] = json.loads(out)
    assert launcher.returncode == found["code"]
    return found


def left_over(attempt: Path) -> list[int]:
    """Processes that were started for this attempt and still are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if os.fsencode(attempt) in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def wait_for_ranks(attempt: Path) -> None:
    end = time.monotonic() + GENEROUS_S
    while len(list((attempt / "heartbeat").glob("rank*.json"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_done(attempt: Path) -> None:
    found = finish(launch("done", attempt))
    assert found == {"code": 0, "failure": None, "most_beats": 2}
    assert not (attempt / "error.json").exists()
    assert left_over(attempt) == []


@pytest.mark.parametrize(
    ("scenario", "code", "rank", "words"),
    [
        ("crash", 1, 1, ["out of luck"]),
        ("user", 2, 0, ["cat.png is no picture"]),
        ("killed", 1, 1, ["rank 1", "SIGKILL", "memory", "step 3", "'ulysses' (#17)"]),
        ("victim", 1, 1, ["rank 1", "SIGKILL"]),
        ("exits", 1, 1, ["rank 1", "exit code 7"]),
        ("torchrun-killed", 1, 1, ["rank 1", "SIGKILL", "memory", "step 3", "'ulysses' (#17)"]),
        ("nothing", 1, 0, ["without an error message", ": No module named opensora_launch"]),
    ],
)
def test_names_the_rank_that_failed_first(attempt: Path, scenario: str, code: int, rank: int, words: list[str]) -> None:
    found = finish(launch(scenario, attempt))
    assert (found["code"], found["failure"]["rank"]) == (code, rank)
    assert [word for word in words if word not in found["failure"]["message"]] == []
    assert left_over(attempt) == []
    assert json.loads((attempt / "error.json").read_text())["kind"] in ("failure", "user")


def test_a_stopped_rank_is_named_with_step_and_collective_and_ended(attempt: Path) -> None:
    found = finish(launch("stopped", attempt, timeout_s=2.0))
    failure = found["failure"]
    assert (found["code"], failure["rank"], failure["kind"]) == (1, 1, "stalled")
    assert (failure["phase"], failure["step"], failure["collective"]) == ("denoise", 3, "ulysses")
    assert left_over(attempt) == []


@pytest.mark.parametrize(
    ("signum", "ranks"), [(signal.SIGINT, "stubborn"), (signal.SIGTERM, "polite"), (signal.SIGHUP, "polite")]
)
def test_a_signal_to_the_launcher_ends_all(attempt: Path, signum: signal.Signals, ranks: str) -> None:
    launcher = launch(ranks, attempt)
    wait_for_ranks(attempt)
    launcher.send_signal(signum)
    assert finish(launcher)["code"] == 128 + signum
    assert left_over(attempt) == []


def test_ranks_end_with_a_launcher_that_is_killed(attempt: Path) -> None:
    launcher = launch("torchrun-polite", attempt)
    wait_for_ranks(attempt)
    launcher.kill()
    launcher.communicate()
    end = time.monotonic() + GENEROUS_S
    while left_over(attempt):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_ranks_end_with_a_torchrun_that_is_killed(attempt: Path) -> None:
    launcher = launch("stubborn", attempt)
    wait_for_ranks(attempt)
    (agent,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGKILL)
    found = finish(launcher)
    assert found["code"] == 1
    assert "what started them, which was killed by SIGKILL" in found["failure"]["message"]
    assert left_over(attempt) == []


def test_a_request_to_store_is_passed_on(attempt: Path) -> None:
    """Though the whole process group gets the signal, torchrun lives on."""
    launcher = launch("torchrun-stores", attempt)
    wait_for_ranks(attempt)
    (agent,) = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(agent), signal.SIGUSR1)
    launcher.send_signal(signal.SIGUSR1)
    assert finish(launcher)["code"] == 75
    assert left_over(attempt) == []


def test_nohup_is_respected(attempt: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        launcher = launch("done", attempt)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for_ranks(attempt)
    launcher.send_signal(signal.SIGHUP)
    assert finish(launcher)["code"] == 0
