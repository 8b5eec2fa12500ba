"""A run that scripts/chaos harms: its folder, its processes, its files."""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
CLI = [sys.executable, "-m", "opensora_launch.cli"]
TIMEOUT_S = 10  # of a rank that is silent
END_S = 360.0  # a run that has not ended by then hangs: ranks wait five minutes for one that does not come
VIDEOS = {"0000_0": 2, "0001_0": 4}  # their steps: the first is there when the second is harmed
LAUNCHERS = {"inline": 1, "torchrun": 2, "slurm": 2, "srun": 2}  # and their ranks
WORDS = ("model=tiny", "video.num_frames=5", "topology.device=cpu", "layout.dp=1", f"launcher.timeout_s={TIMEOUT_S}")


@dataclass
class Run:
    """A launcher at work in a folder of its own."""

    folder: Path
    launcher: str
    rank: int  # that is held, and harmed
    env: dict[str, str]
    undo: list[Callable[[], object]] = field(default_factory=list)
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        prompts = self.folder / "p.jsonl"
        prompts.write_text("".join(f'{{"text": "rain", "num_steps": {steps}}}\n' for steps in VIDEOS.values()))
        self.process = self.start("--prompts", str(prompts), *WORDS, *words_of(self.launcher))

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        argv = [*CLI, "generate", *words]
        return subprocess.Popen(
            argv,
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run_dir(self) -> Path | None:
        return next(iter(sorted(self.runs.glob("2*"))), None)

    def rank_pid(self) -> int:
        """The process of the rank to harm; TimeoutError if there is none in time."""
        return wait_for(lambda: next(iter(self.ranks()), 0), "no rank has started")

    def ranks(self) -> list[int]:
        if self.launcher == "inline":
            return [self.process.pid]
        return [
            pid
            for pid in self.processes()
            if b"opensora_launch.worker" in words(pid, "cmdline")
            and b"srun" not in words(pid, "cmdline")[0]
            and {f"{name}={self.rank}".encode() for name in ("RANK", "SLURM_PROCID")} & {*words(pid, "environ")}
        ]

    def agent_pid(self) -> int:
        """The process of torchrun or srun. The latter has a child of that name, which goes with it."""

        def is_agent(argv: list[bytes]) -> bool:
            return b"torch.distributed.run" in argv or (bool(argv) and argv[0].endswith(b"/srun"))

        return wait_for(
            lambda: min((p for p in self.processes() if is_agent(words(p, "cmdline"))), default=0),
            "no agent has started",
        )

    def processes(self) -> list[int]:
        """Every process of this run that lives, however far from the launcher: it has the run's mark."""
        mark = f"CHAOS_HOLD={self.env['CHAOS_HOLD']}".encode()
        every = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
        return [pid for pid in every if mark in words(pid, "environ")]

    def samples(self) -> dict[str, bytes]:
        """Every file of samples/ but the records, which hold seconds."""
        found = self.runs.glob("2*/samples/*")
        return {p.name: p.read_bytes() for p in found if p.suffix != ".json"}


def words_of(launcher: str) -> tuple[str, ...]:
    if launcher == "slurm":
        ranks = f"topology.gpus_per_node={LAUNCHERS[launcher]}"
        one_cpu = (
            "launcher.threads_per_rank=1",
            "launcher.slurm.cpus_per_rank=1",
            "launcher.slurm.connect_timeout_s=20",
        )
        return ("launcher=slurm", "follow=true", "topology=custom", ranks, *one_cpu)
    if launcher == "srun":
        nodes = (f"topology.nodes={LAUNCHERS[launcher]}", "topology.gpus_per_node=1")
        return ("launcher=srun", "topology=custom", *nodes, "launcher.threads_per_rank=1")
    return (f"launcher={launcher}", f"topology=cpu{LAUNCHERS[launcher]}")


def words(pid: int, file: str) -> list[bytes]:
    """The words of /proc/PID/FILE; none for a process that is over."""
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().split(b"\0")
    except OSError:
        return []


def wait_for(look: Callable[[], T], otherwise: str, seconds: float = END_S) -> T:
    end = time.monotonic() + seconds
    while not (found := look()):
        if time.monotonic() > end:
            raise TimeoutError(otherwise)
        time.sleep(0.002)
    return found
