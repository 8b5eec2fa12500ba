"""A Slurm of our own, brought up once for all modules that ask for it, and skipped aloud where that cannot be."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
TINY = (
    "model=tiny", "video.num_frames=1", "launcher=slurm", "topology=custom", "topology.device=cpu",
    "launcher.threads_per_rank=1", "launcher.slurm.cpus_per_rank=1",
)  # fmt: skip
LONG = ("--prompt", "waves", "sampling.num_steps=400", "launcher.checkpoint_every_steps=10")


@dataclass
class Cluster:
    """Four nodes n1 to n4 of 8 CPUs and 4 GPUs that are only names."""

    folder: Path

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

    def processes(self) -> dict[int, str]:
        """Command lines on this machine, nodes included, that name the run."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode() if entry.name.isdigit() else ""
            except OSError:
                continue
            if str(self.folder) in line:
                found[int(entry.name)] = line
        return found

    def kill_rank(self, attempt: int) -> None:
        rank = f"{sys.executable} -m opensora_launch.worker --attempt {self.folder}/attempts/{attempt} "
        (pid,) = [pid for pid, line in self.processes().items() if line.startswith(rank)]
        os.kill(pid, signal.SIGKILL)

    def status(self) -> str:
        return self.cluster.opensora("status", str(self.folder), cwd=self.folder).stdout


def wait_for(look: Callable[[], object], seconds: float = 150.0) -> str:
    """What `look` gives once it is true."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
    return str(found)


def words_of(*argv: str, nodes: int = 1, ranks: int = 1) -> list[str]:
    return ["generate", *TINY, f"topology.nodes={nodes}", f"topology.gpus_per_node={ranks}", *argv]


def submit(cluster: Cluster, cwd: Path, *argv: str, nodes: int = 1, ranks: int = 1) -> Run:
    done = cluster.opensora(*words_of(*argv, nodes=nodes, ranks=ranks), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return run_of(cluster, done.stdout)


def run_of(cluster: Cluster, out: str) -> Run:
    """What `generate` says that it has submitted."""
    said = {name: rest for line in out.splitlines() for name, _, rest in [line.partition(": ")]}
    return Run(cluster, said["job"], Path(said["run"]))


@dataclass
class Followed:
    """A launcher that stays with its job: follow=true."""

    process: subprocess.Popen[str]
    run: Run
    out: Path
    err: Path

    def end(self) -> tuple[int, str]:
        """Exit code and what was said on stderr."""
        return self.process.wait(300), self.err.read_text()


def follow(cluster: Cluster, cwd: Path, *argv: str) -> Followed:
    """Submit, and return once there is a job."""
    out, err = cwd / "followed.out", cwd / "followed.err"
    command = [sys.executable, "-m", "opensora_launch.cli", *argv, "follow=true"]
    with out.open("w") as to, err.open("w") as errors:
        process = subprocess.Popen(command, cwd=cwd, env=cluster.env, stdout=to, stderr=errors, text=True)
    wait_for(lambda: "log: " in out.read_text() or process.poll() is not None)
    assert process.poll() is None, err.read_text()
    return Followed(process, run_of(cluster, out.read_text()), out, err)


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png))).astype(int)


def assert_same(one: bytes, other: bytes) -> None:
    """But for the last bit of a rounding."""
    assert abs(pixels(one) - pixels(other)).max() <= 1


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
    try:
        done = subprocess.run([HERE / "cluster", "up", folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        yield Cluster(folder)
    finally:
        subprocess.run([HERE / "cluster", "down", folder], check=True)


@pytest.fixture(scope="session")
def long_picture(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of LONG, made on one rank without a break, in a job."""
    run = submit(cluster, tmp_path_factory.mktemp("whole"), *LONG)
    assert cluster.wait(run.job) == "COMPLETED", run.log()
    return run.picture()
