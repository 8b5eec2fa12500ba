"""A Slurm of our own, brought up once for the module that asks for it, and skipped aloud where that cannot be."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
UP_S = 15.0
TINY = (
    "model=tiny", "video.num_frames=1", "launcher=slurm", "topology=custom", "topology.device=cpu",
    "launcher.threads_per_rank=1", "launcher.slurm.cpus_per_rank=1",
)  # fmt: skip


@dataclass
class Cluster:
    """Four nodes n1 to n4 of 8 CPUs and 4 GPUs that are only names."""

    folder: Path
    up_s: float

    @property
    def env(self) -> dict[str, str]:
        """A user's on the login node."""
        own = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return {name: value for name, value in os.environ.items() if not name.startswith("SLURM")} | own

    def run(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """A command on the login node."""
        env = self.env
        return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)

    def opensora(self, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "opensora_launch.cli", *argv, cwd=cwd)

    def node(self, command: str, name: str) -> None:
        subprocess.run([HERE / "cluster", command, self.folder, name], check=True)

    def state(self, job: str) -> str:
        return self.run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").stdout.strip()

    def wait(self, job: str, seconds: float = 600.0) -> str:
        """The state of a job that is over."""
        return wait_for(
            lambda: s if (s := self.state(job)) not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "") else "",
            seconds,
        )


@dataclass
class Run:
    """A run that was submitted."""

    cluster: Cluster
    job: str
    folder: Path

    def picture(self, name: str = "0000_0") -> bytes:
        return (self.folder / f"samples/{name}.png").read_bytes()

    def log(self, attempt: int = 0) -> str:
        return "".join(p.read_text() for p in sorted((self.folder / f"attempts/{attempt}/logs").glob("*.log")))

    def wait_for_step(self, step: int, attempt: int = 0) -> None:
        """Until rank 0 computes it."""
        file = self.folder / f"attempts/{attempt}/telemetry/rank0.jsonl"
        wait_for(lambda: file.exists() and file.read_text().count('"kind": "step"') >= step)


def wait_for(look: Callable[[], object], seconds: float = 150.0) -> str:
    """What `look` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return str(found)


def submit(cluster: Cluster, cwd: Path, *argv: str, nodes: int = 1, ranks: int = 1) -> Run:
    words = ["generate", *TINY, f"topology.nodes={nodes}", f"topology.gpus_per_node={ranks}", *argv]
    done = cluster.opensora(*words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    said = {name: rest for line in done.stdout.splitlines() for name, _, rest in [line.partition(": ")]}
    return Run(cluster, said["job"], Path(said["run"]))


def cannot() -> str:
    """Why there can be no cluster here."""
    missing = [tool for tool in ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare") if not shutil.which(tool)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    probe: Sequence[str] = ("unshare", "--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "true")
    return "" if subprocess.run(probe, capture_output=True).returncode == 0 else "no namespaces here"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    if reason := cannot():
        pytest.skip(f"a cluster cannot be started: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # short: a socket's path lies below it
    started = time.monotonic()
    try:
        done = subprocess.run([HERE / "cluster", "up", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield Cluster(folder, time.monotonic() - started)
    finally:
        subprocess.run([HERE / "cluster", "down", folder], check=True)
