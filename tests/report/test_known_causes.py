"""Real runs on CPU ranks into which one fault is put: the first line of the page and of the terminal names it.

Each fault is large beside everything else that a crowded machine loses, and its size is drawn from half to double.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

import opensora_launch
from opensora_launch.report.markdown import summary_lines
from opensora_launch.report.wording import Message, say

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]
DEMO = Path(opensora_launch.__file__).parent / "demo" / "ckpts"
SMALL = ("layout.dp=1", "video=custom", "video.width_px=64", "video.height_px=64", "video.num_frames=5")
AWAKE_S = 0.05
CORES = len(os.sched_getaffinity(0))
Beats = Callable[[], Iterator[dict[str, Any]]]


@pytest.fixture
def factor(request: pytest.FixtureRequest) -> float:
    """From 0.5 to 2, another one for each test."""
    return float(2 ** Random(request.node.name).uniform(-1, 1))


def generate(
    folder: Path, *words: str, model: str = "tiny", harm: Callable[[Beats, threading.Event], None] | None = None
) -> Message:
    """Run with what `harm` does meanwhile; return the verdict, with which terminal and report begin."""
    argv = [
        sys.executable,
        "-m",
        "opensora_launch.cli",
        "generate",
        "--prompt",
        "rain",
        f"model={model}",
        *SMALL,
        *words,
    ]
    process = subprocess.Popen(
        argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )

    def beats() -> Iterator[dict[str, Any]]:
        for path in folder.glob("runs/2*/attempts/0/heartbeat/rank*.json"):
            yield json.loads(path.read_text())

    over = threading.Event()
    thread = threading.Thread(target=harm, args=(beats, over)) if harm else None
    if thread:
        thread.start()
    try:
        out = process.communicate()[0].decode()
    finally:
        over.set()
        if thread:
            thread.join()
    assert process.returncode == 0, out
    (made,) = folder.glob("runs/2*")
    report = json.loads((made / "report.json").read_text())
    lost: Message = report["verdict"]
    words_of = " ".join(say(lost).split())
    assert " ".join(summary_lines(report)).startswith(words_of[:60])
    assert words_of[:60] in " ".join(out.split())
    assert words_of[:40] in (made / "report.md").read_text()
    return lost


def stopped_again_and_again(rank: int, asleep_s: float) -> Callable[[Beats, threading.Event], None]:
    """Stop a rank while it denoises, and let it run for a moment between."""

    def harm(beats: Beats, over: threading.Event) -> None:
        while not over.wait(AWAKE_S):
            for beat in beats():
                if beat["rank"] == rank and beat["phase"] == "denoise" and beat["state"] == "running":
                    os.kill(beat["pid"], signal.SIGSTOP)
                    time.sleep(asleep_s)
                    os.kill(beat["pid"], signal.SIGCONT)

    return harm


def crowded(programs: int) -> Callable[[Beats, threading.Event], None]:
    """Start programs that only compute, as soon as there are ranks."""

    def harm(beats: Beats, over: threading.Event) -> None:
        while not any(beats()) and not over.wait(0.05):
            pass
        with ExitStack() as stack:
            for _ in range(programs):
                stack.enter_context(burning())
            over.wait()

    return harm


@contextmanager
def burning() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_a_healthy_run(tmp_path: Path) -> None:
    """Where the machine has other work the rank truly starves, and the verdict says so; no other loss is named."""
    steps = ["model.mmdit.depth=8", "model.mmdit.depth_single_blocks=12", "sampling.num_steps=800"]
    found = generate(tmp_path, "topology=cpu1", *steps)  # long, beside the start and beside what is between the steps
    others = found.get("largest")
    assert others is None or (others["code"], others.get("cause", {}).get("code")) == ("loss_starved", "busy_cpus"), (
        found
    )


def test_a_rank_that_sleeps(tmp_path: Path, factor: float) -> None:
    size = ("video.width_px=128", "video.height_px=128", "video.num_frames=17", "sampling.num_steps=40")
    found = generate(tmp_path, "topology=cpu2", *size, harm=stopped_again_and_again(1, 0.8 * factor))["largest"]
    assert (found["code"], found["ranks"], found["doing"]["code"]) == ("loss_wait", [1], "doing_compute")
    assert found["cause"]["code"] == "asleep"


def test_other_programs_on_the_cores(tmp_path: Path, factor: float) -> None:
    harm = crowded(round(4 * factor) * CORES)
    found = generate(tmp_path, "topology=cpu2", "sampling.num_steps=100", harm=harm)["largest"]
    assert (found["code"], found["cause"]["code"]) == ("loss_starved", "busy_cpus")


def test_more_ranks_than_cores(tmp_path: Path, factor: float) -> None:
    ranks = min(8, max(CORES + 1, round(2 * factor * CORES)))
    if ranks <= CORES:
        pytest.skip(f"this machine has {CORES} cores, and a run on CPUs at most 8 ranks")
    words = (f"topology=cpu{ranks}", "launcher.threads_per_rank=1", f"layout.ulysses={ranks}")
    found = generate(tmp_path, *words, "sampling.num_steps=60")["largest"]
    assert (found["code"], found["cause"]["code"]) == ("loss_starved", "too_many_threads")


def test_a_vae_on_one_rank(tmp_path: Path, factor: float) -> None:
    """A video of one tile."""
    size = ("video.width_px=128", "video.height_px=128", f"video.num_frames={4 * round(4 * factor) + 1}")
    found = generate(tmp_path, "topology=cpu2", *size, "sampling.num_steps=1")["largest"]
    assert (found["code"], found["ranks"], found["doing"]["code"]) == ("loss_wait", [0], "doing_vae")


# Whoever opens a file waits for the process that holds its lease.
LEASE = """
import fcntl, os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGIO])
fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_SETLEASE, fcntl.F_WRLCK)
signal.sigwait([signal.SIGIO])
time.sleep(float(sys.argv[2]))
"""


def late(weights: Path, seconds: float) -> Callable[[Beats, threading.Event], None]:
    """Let ranks that open a file wait, once the launcher has read its head."""

    def harm(beats: Beats, over: threading.Event) -> None:
        while not any(weights.parents[1].glob("runs/2*/attempts/0/logs")) and not over.wait(0.02):
            pass
        process = subprocess.Popen([sys.executable, "-c", LEASE, str(weights), str(seconds)])
        over.wait()
        process.kill()
        process.wait()

    return harm


def test_weights_that_come_late(tmp_path: Path, factor: float) -> None:
    shutil.copytree(DEMO, tmp_path / "ckpts")
    weights = tmp_path / "ckpts" / "Open_Sora_v2.safetensors"
    words = (f"model.folder={tmp_path / 'ckpts'}", "topology=cpu2", "sampling.num_steps=1")
    found = generate(tmp_path, *words, model="demo", harm=late(weights, 8 * factor))["largest"]
    assert (found["code"], sorted(found["ranks"]), found["what"]["code"]) == ("loss_part", [0, 1], "lost_load")
