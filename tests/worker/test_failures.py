"""Runs that go wrong, for real: torchrun, gloo, signals. No hang, no orphan, the guilty rank named, videos kept."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ranks import run_command
from tests.worker.test_generate import frames_of

COMMAND = [sys.executable, "-m", "opensora_launch.cli", "generate", "model=tiny"]
START_S, END_S = 180.0, 200.0  # these turn a hang into a failure, on a slow machine too

pytestmark = pytest.mark.timeout(400)  # torchrun, several times, on whatever else the machine does


class Run:
    """A launcher that makes two videos on some ranks: a short one, and one that takes its time."""

    def __init__(self, folder: Path, ranks: int, timeout_s: float) -> None:
        self.folder = folder
        prompts = folder / "prompts.jsonl"
        prompts.write_text('{"text": "short", "num_steps": 2}\n{"text": "long", "num_steps": 10000}\n')
        argv = [*COMMAND, "--prompts", str(prompts), f"topology=cpu{ranks}", "layout.dp=1"]
        argv.append(f"launcher.timeout_s={timeout_s}")
        self.process = subprocess.Popen(
            argv, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.pids = self._wait_for_the_long_one(ranks)

    @property
    def attempt(self) -> Path:
        return next((self.folder / "runs").glob("*/attempts/0"))

    def beats(self) -> list[dict[str, Any]]:
        files = sorted((self.folder / "runs").glob("*/attempts/0/heartbeat/rank*.json"))
        return [json.loads(file.read_text()) for file in files]

    def _wait_for_the_long_one(self, ranks: int) -> list[int]:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            beats = self.beats()
            at_work = (beat["video"] == "0001_0" and beat["step"] is not None for beat in beats)
            if len(beats) == ranks and all(at_work):
                return [b["pid"] for b in beats]
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.1)
        raise AssertionError("the run did not come to its second video")

    def end(self) -> tuple[int, str]:
        """Exit code and output."""
        out, _ = self.process.communicate(timeout=END_S)
        return self.process.returncode, out


@pytest.fixture
def three_ranks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """They wait long for one another, since the machine may be slow, unless a test says how long."""
    run = Run(tmp_path, 3, getattr(request, "param", 60.0))
    yield run
    if run.process.poll() is None:
        os.killpg(run.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + END_S
    while any(alive(pid) for pid in run.pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in run.pids if alive(pid)] == [], "ranks were left behind"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def finished(run: Run) -> list[str]:
    return sorted(p.name for p in (run.folder / "runs").glob("*/samples/*") if not p.name.startswith("."))


@pytest.mark.slow
@pytest.mark.parametrize("three_ranks", [8.0], indirect=True)
def test_a_stopped_rank_is_named_with_step_and_collective(three_ranks):
    os.kill(three_ranks.pids[2], signal.SIGSTOP)
    code, out = three_ranks.end()
    assert code == 1
    assert "error: rank 2" in out
    error = json.loads((three_ranks.attempt / "error.json").read_text())
    assert (error["rank"], error["phase"]) == (2, "denoise")
    assert error["step"] is not None
    assert error["collective"] in ("ulysses", "video")
    assert finished(three_ranks) == ["0000_0.json", "0000_0.mp4", "0000_0.sheet.png"]


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(three_ranks):
    os.kill(three_ranks.process.pid, signal.SIGINT)
    code, out = three_ranks.end()
    assert code == 130
    assert "Traceback" not in out
    assert "--resume" in out


def apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(float) - other.astype(float)).mean())


# Of an operator of Kubernetes, of a torchrun, and of a shell in a Slurm step.
OTHERS = {"PET_NNODES": "2", "LOGLEVEL": "loud", "PYTHON_EXEC": "/bin/false", "RANK": "1", "WORLD_SIZE": "2"}
OTHERS |= {"LOCAL_RANK": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_TASKS_PER_NODE": "2"}


def in_a_hostile_place(folder: Path, *words: str) -> tuple[int, str, str]:
    """The variables of others' ranks are set, and a file is named like a module of Python's."""
    (folder / "random.py").write_text("raise SystemExit('not this one')")
    argv = [str(Path(sys.executable).with_name("opensora-launch")), *words]
    done = subprocess.run(argv, cwd=folder, env=os.environ | OTHERS, capture_output=True, text=True, timeout=END_S)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
def test_what_is_missing_is_made_by_resume_on_another_number_of_ranks(tmp_path):
    """One rank in this launcher's own process made two videos, and one of them is lost."""
    (tmp_path / "p.txt").write_text("one\ntwo\n")
    words = ["model=tiny", "launcher=inline", "topology=cpu1", "sampling.num_steps=2", "--prompts", "p.txt"]
    code, out, err = in_a_hostile_place(tmp_path, "generate", *words)
    assert code == 0, err
    (run_dir,) = (tmp_path / "runs").iterdir()
    first, second = run_dir / "samples/0000_0.mp4", run_dir / "samples/0001_0.mp4"
    want, kept = frames_of(second), first.stat().st_mtime_ns
    (run_dir / "samples/0001_0.json").unlink()  # the record of completion: without it the video is not done
    second.unlink()
    again = ["generate", "--resume", str(run_dir), "topology=cpu2", "launcher=torchrun"]
    temporary = set(Path(tempfile.gettempdir()).glob("torchelastic_*"))
    code, _, err = in_a_hostile_place(tmp_path, *again)
    assert code == 0, err
    assert set(Path(tempfile.gettempdir()).glob("torchelastic_*")) <= temporary
    again_frames = frames_of(second)
    assert again_frames.shape == want.shape
    # Of 255. What the codec makes of noise that differs by rounding, and another video of noise.
    assert apart(again_frames, want) < 5 < 30 < apart(frames_of(first), want)
    assert first.stat().st_mtime_ns == kept
    code, nothing, _ = run_command(tmp_path, *again)
    assert (code, "nothing is missing" in nothing) == (0, True)
    assert str(first) in out


@pytest.mark.slow
def test_ranks_started_by_hand_make_the_same_video(tmp_path):
    flags = ["--prompt", "by hand", "model=tiny", "sampling.num_steps=2"]
    argv = [
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "--nproc-per-node",
        "2",
        "-m",
        "opensora_launch.worker",
        *flags,
    ]
    hand, launched = tmp_path / "hand", tmp_path / "launched"
    for folder, command in (
        (hand, [sys.executable, "-m", "torch.distributed.run", *argv]),
        (launched, [*COMMAND[:4], *flags, "topology=cpu2"]),
    ):
        folder.mkdir()
        subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    (by_hand,), (by_launcher,) = (list(f.glob("runs/*/samples/*.mp4")) for f in (hand, launched))
    assert by_hand.read_bytes() == by_launcher.read_bytes()
    assert len(list(hand.glob("runs/*/report.json"))) == 1


@pytest.mark.slow
def test_by_hand_a_mistake_is_one_message_and_no_hang(tmp_path):
    argv = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", "-m", "opensora_launch.worker"]
    bad = ["--prompt", "x", "model=tiny", "video.num_frames=16"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *argv, *bad],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode != 0
    assert "video.num_frames=16 must be 1 plus a multiple of 4; the nearest is 17" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_rank_that_cannot_import_says_so_before_it_has_a_log(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    env = os.environ | {"PYTHONPATH": str(tmp_path), "RANK": "3"}
    argv = [sys.executable, "-m", "opensora_launch.worker", "--attempt", str(tmp_path)]
    assert subprocess.run(argv, env=env, capture_output=True).returncode == 1
    error = json.loads((tmp_path / "error.json").read_text())
    assert (error["rank"], error["host"], error["kind"]) == (3, socket.gethostname(), "failure")
    assert error["message"] == "ImportError: libcudart.so.13: cannot open shared object file"
    assert "torch.py" in error["traceback"]
