"""Where scripts/chaos runs: a small disk, a Slurm of its own, an allocation of that."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from _bench import ROOT

from _chaos.harmed_run import LAUNCHERS, wait_for

CLUSTER = ROOT / "tests" / "slurm" / "cluster"
ON_SLURM = ("slurm", "srun")
DISK_MIB = 64


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A tmpfs of a limited size at that folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "chaos", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def slurm_cluster() -> Iterator[None]:
    """A Slurm of our own on this machine, whose commands come first on PATH."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        try:
            subprocess.run([CLUSTER, "up", folder], check=True, stdout=subprocess.DEVNULL)
            os.environ |= {"PATH": f"{folder}/bin:{os.environ['PATH']}", "CHAOS_CLUSTER": folder}
            yield
        finally:
            subprocess.run([CLUSTER, "down", folder], check=True)


def node_command(command: str, node: str) -> None:
    """kill-node or start-node, on the cluster that runs."""
    subprocess.run([CLUSTER, command, os.environ["CHAOS_CLUSTER"], node], check=True)


@contextlib.contextmanager
def allocation(launcher: str) -> Iterator[dict[str, str]]:
    """Two nodes for a launcher that needs them, and the variables by which it finds them."""
    if launcher != "srun":
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        told, made = Path(folder) / "told", Path(folder) / "made"
        nodes = [f"--nodes={LAUNCHERS[launcher]}", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=30"]
        stay = f"env -0 >{told} && mv {told} {made} && exec sleep infinity"
        process = subprocess.Popen(["salloc", "--quiet", "--kill-command=KILL", *nodes, "sh", "-c", stay])
        wait_for(made.exists, "no allocation")
        told_words = dict(word.split("=", 1) for word in made.read_text().split("\0") if "=" in word)
        try:
            yield {name: value for name, value in told_words.items() if name.startswith("SLURM_")}
        finally:
            subprocess.run(["scancel", told_words["SLURM_JOB_ID"]], check=False)  # which may be over
            process.wait()
