"""Start real ranks for a few seconds: check that each starts on its own GPU, and measure each axis.

spec.json holds the request to the ranks, probe.json their measurements.
"""

import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from opensora_launch.doctor.check_result import CheckResult, failure, ok, warning
from opensora_launch.launch.command import torchrun, without_others
from opensora_launch.machine import processes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import LauncherKind


@dataclass(frozen=True)
class ProbeSpec:
    """Send `nbytes` per rank along each axis of the layout, `repeats` times."""

    device: str  # "cpu" or "cuda"
    layout: Layout
    threads_per_rank: int
    nbytes: int
    repeats: int
    timeout_s: float


@dataclass(frozen=True)
class RankSeen:
    """Where a rank started. `clock_ahead_s` is its host's wall clock minus rank 0's; None if not measured."""

    rank: int
    host: str
    gpu: str | None  # UUID
    clock_ahead_s: float | None


@dataclass(frozen=True)
class AxisSpeed:
    """The median of the slowest rank: bytes that it sent to others, and the time of the exchange."""

    axis: str
    op: str
    ranks: int
    sent_bytes: int  # by each rank, in each exchange
    seconds: float

    @property
    def gb_s(self) -> float:
        return self.sent_bytes / self.seconds / 1e9


@dataclass(frozen=True)
class ProbeResult:
    ranks: tuple[RankSeen, ...]
    speeds: tuple[AxisSpeed, ...]


MODULE = "opensora_launch.worker.probe_rank"
_SLOW_SHARE = 0.35  # of the link's bandwidth in the catalogue; good exchanges reach half of it
CLOCK_S = 0.1


def probe_command(machine: Machine, folder: Path) -> list[str]:
    """The argv that starts the ranks: torchrun on this machine, or one srun task per rank on the nodes of the job."""
    if machine.nodes > 1:
        tasks = [f"--nodes={machine.nodes}", f"--ntasks={machine.ranks}", f"--ntasks-per-node={machine.gpus_per_node}"]
        return ["srun", *tasks, "--overlap", "--kill-on-bad-exit=1", sys.executable, "-m", MODULE, str(folder)]
    return torchrun(machine, [MODULE, str(folder)])


def run_probe(
    machine: Machine, spec: ProbeSpec, env: Mapping[str, str], shared: Path | None = None
) -> tuple[ProbeResult | None, str]:
    """The measurements, or the reason why there are none. Ends within spec.timeout_s and leaves no process running.

    `shared` is a folder that all nodes see, needed if there are several.
    """
    env = without_others(env, LauncherKind.torchrun if machine.nodes == 1 else LauncherKind.srun)
    with tempfile.TemporaryDirectory(prefix=".opensora-doctor-", dir=shared) as name:
        folder = Path(name)
        (folder / "spec.json").write_bytes(msgspec.json.encode(spec))
        with (folder / "torchrun.log").open("wb") as log:
            argv = probe_command(machine, folder)
            process = subprocess.Popen(
                argv, env=dict(env), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            why = _wait(process, spec.timeout_s)
        written = folder / "probe.json"
        if written.exists() and not why:
            return msgspec.json.decode(written.read_bytes(), type=ProbeResult), ""
        return None, why or _last_error(folder)


def check_probe(result: ProbeResult | None, why_not: str, expected: Mapping[str, float]) -> list[CheckResult]:
    """Judge the measurements. `expected` is GB/s by axis, for links that the catalogue knows."""
    if result is None:
        fix = "see the driver, links and env lines; NCCL_DEBUG=INFO tells more"
        return [failure("ranks", f"a short test of the ranks failed: {why_not}", fix, "no cost")]
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


def _last_error(folder: Path) -> str:
    """The first rank's error, else the last line of torchrun's log."""
    for log in (*sorted(folder.glob("rank*.log")), folder / "torchrun.log"):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if "rror" in line]
        if lines:
            return lines[-1].strip()[:300]
    return "the ranks ended without an error message"


def _ranks(result: ProbeResult) -> Iterator[CheckResult]:
    gpus = Counter((rank.host, rank.gpu) for rank in result.ranks if rank.gpu)
    shared = [f"{gpu} on {host}" for (host, gpu), count in gpus.items() if count > 1]
    hosts = len({rank.host for rank in result.ranks})
    if shared:
        fix = "check CUDA_VISIBLE_DEVICES; on Slurm, remove --gpus-per-task"
        yield failure("ranks", f"several ranks share a GPU: {', '.join(shared)}", fix, "a new job")
    else:
        each = "each on its own GPU" if gpus else "on the CPU"
        yield ok("ranks", f"{len(result.ranks)} started on {hosts} host{'s' if hosts > 1 else ''}, {each}")


def _clocks(result: ProbeResult) -> Iterator[CheckResult]:
    ahead = {rank.host: rank.clock_ahead_s for rank in result.ranks if rank.clock_ahead_s is not None}
    if len(ahead) < 2:
        return
    span = max(ahead.values()) - min(ahead.values())
    what = f"clocks of {len(ahead)} nodes within {1e3 * span:.1f} ms"
    if span <= CLOCK_S:
        yield ok("clock", what)
    else:
        off = max(ahead, key=lambda host: abs(ahead[host] or 0.0))
        yield warning("clock", f"{what}; {off} is off most", "start chronyd there", "root and a minute")


def _speed(speed: AxisSpeed, expected: float | None) -> CheckResult:
    op = speed.op.replace("_", "-")
    what = f"{speed.axis} of {speed.ranks}: {op} {speed.gb_s:.2f} GB/s sent by each rank"
    if expected is not None:
        what += f", {speed.gb_s / expected:.0%} of the catalogue's {expected:.0f}"
    judged = ok("bandwidth", what)
    if expected is not None and speed.gb_s < _SLOW_SHARE * expected:
        fix = "see the links, pcie and env lines, nvidia-smi topo -m, and what else uses the link"
        judged = warning("bandwidth", what, fix, "no cost")
    return replace(judged, value=speed.gb_s, unit="GB/s")
