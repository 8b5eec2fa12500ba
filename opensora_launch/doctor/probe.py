"""Real ranks for a few seconds: do they come up, each on its own GPU, and how fast is each axis?"""

import json
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from opensora_launch.doctor.probe_spec import AxisSpeed, ProbeResult, ProbeSpec
from opensora_launch.doctor.results import Finding, Level, ok
from opensora_launch.machine import processes
from opensora_launch.plan.plan import Machine

MODULE = "opensora_launch.worker.probe"
SLOW = 0.35  # of what the catalogue has for the link; good exchanges reach half of it
CLOCK_S = 0.1


def probe_command(machine: Machine, folder: Path) -> list[str]:
    """argv of the ranks: torchrun on this machine, or one srun task each on the nodes of this Slurm job."""
    if machine.nodes > 1:
        tasks = [f"--nodes={machine.nodes}", f"--ntasks={machine.ranks}", f"--ntasks-per-node={machine.gpus_per_node}"]
        return ["srun", *tasks, "--overlap", "--kill-on-bad-exit=1", sys.executable, "-m", MODULE, str(folder)]
    agent = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    return [sys.executable, *agent, "--nproc-per-node", str(machine.gpus_per_node), "-m", MODULE, str(folder)]


def run_probe(
    machine: Machine, spec: ProbeSpec, env: Mapping[str, str], shared: Path | None = None
) -> tuple[ProbeResult | None, str]:
    """The answer, or why there is none. Bounded by spec.timeout_s; nothing is left running.

    `shared` is a folder that all nodes see, where there are several.
    """
    if machine.nodes == 1:  # torchrun's ranks are no tasks of a batch job, though they may run inside one
        env = {name: value for name, value in env.items() if not name.startswith("SLURM_")}
    with tempfile.TemporaryDirectory(prefix=".opensora-doctor-", dir=shared) as name:
        folder = Path(name)
        (folder / "spec.json").write_text(json.dumps(spec.to_dict()), encoding="utf-8")
        with (folder / "torchrun.log").open("wb") as log:
            argv = probe_command(machine, folder)
            process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            why = _wait(process, spec.timeout_s)
        answer = folder / "probe.json"
        if answer.exists() and not why:
            return ProbeResult.from_dict(json.loads(answer.read_text(encoding="utf-8"))), ""
        return None, why or _said(folder)


def probe_findings(result: ProbeResult | None, why_not: str, expected: Mapping[str, float]) -> list[Finding]:
    """`expected` has GB/s by axis, where the catalogue knows the link."""
    if result is None:
        return [
            Finding(
                Level.fail,
                "ranks",
                f"a short test of the ranks failed: {why_not}",
                "the driver, links and env lines; NCCL_DEBUG=INFO says more",
                "no cost",
            )
        ]
    return [*_ranks(result), *_clocks(result), *(_speed(speed, expected.get(speed.axis)) for speed in result.speeds)]


def _wait(process: "subprocess.Popen[bytes]", timeout_s: float) -> str:
    try:
        process.wait(timeout_s)
        return ""
    except subprocess.TimeoutExpired:
        return f"no answer after {timeout_s:g} s"
    finally:
        ours = {process.pid, *processes.descendants(process.pid)} if process.poll() is None else set()
        processes.send(ours, signal.SIGKILL)
        process.wait()


def _said(folder: Path) -> str:
    """The first rank's error, else the last line of torchrun's log."""
    for log in (*sorted(folder.glob("rank*.log")), folder / "torchrun.log"):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "rror" in line]
        if lines:
            return lines[-1].strip()[:300]
    return "the ranks ended without a word"


def _ranks(result: ProbeResult) -> Iterator[Finding]:
    gpus = Counter((rank.host, rank.gpu) for rank in result.ranks if rank.gpu)
    shared = [f"{gpu} on {host}" for (host, gpu), count in gpus.items() if count > 1]
    hosts = len({rank.host for rank in result.ranks})
    if shared:
        yield Finding(
            Level.fail, "ranks", f"several ranks share a GPU: {', '.join(shared)}",
            "CUDA_VISIBLE_DEVICES, or on Slurm no --gpus-per-task", "a new job",
        )  # fmt: skip
    else:
        each = "each on its own GPU" if gpus else "on the CPU"
        yield ok("ranks", f"{len(result.ranks)} came up on {hosts} host{'s' if hosts > 1 else ''}, {each}")


def _clocks(result: ProbeResult) -> Iterator[Finding]:
    ahead = {rank.host: rank.clock_ahead_s for rank in result.ranks if rank.clock_ahead_s is not None}
    if len(ahead) < 2:
        return
    span = max(ahead.values()) - min(ahead.values())
    what = f"clocks of {len(ahead)} nodes within {1e3 * span:.1f} ms"
    if span <= CLOCK_S:
        yield ok("clock", what)
    else:
        off = max(ahead, key=lambda host: abs(ahead[host] or 0.0))
        yield Finding(Level.warn, "clock", f"{what}; {off} is off most", "start chronyd there", "root, a minute")


def _speed(speed: AxisSpeed, expected: float | None) -> Finding:
    op = speed.op.replace("_", "-")
    what = f"{speed.axis} of {speed.ranks}: {op} {speed.gb_s:.2f} GB/s sent by each rank"
    if expected is not None:
        what += f", {speed.gb_s / expected:.0%} of the catalogue's {expected:.0f}"
    found = ok("bandwidth", what)
    if expected is not None and speed.gb_s < SLOW * expected:
        fix = "the links, pcie and env lines; nvidia-smi topo -m; what else uses the link"
        found = Finding(Level.warn, "bandwidth", what, fix, "no cost")
    return replace(found, value=speed.gb_s, unit="GB/s")
