"""Helpers for the scripts that write docs/benchmarks: the environment, medians with spread, tables, files."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "benchmarks"


@dataclass(frozen=True)
class Spread:
    """Hold a median, the quartiles around it, and the number of measurements."""

    median: float
    low: float
    high: float
    samples: int

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        median, low, high = (f"{x * scale:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} ({low} – {high})"


def spread(samples: Sequence[float]) -> Spread:
    """Return the median and quartiles; with fewer than four measurements, the extremes replace the quartiles."""
    if len(samples) < 4:
        return Spread(statistics.median(samples), min(samples), max(samples), len(samples))
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, len(samples))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Divide round by round: both times of a round saw the same load, so their ratio is steadier than they are."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def interleaved(runs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return what each run returns in each round. Every second round goes backwards, so no run is always first."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            found[name].append(runs[name]())
    return found


def on_torchrun(script: str, ranks: int, rounds: int) -> dict[str, Any]:
    """Run `script --rounds N --on-rank FILE` on so many ranks of one thread each, and return what FILE then holds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
            *("--nproc-per-node", str(ranks), script, "--rounds", str(rounds), "--on-rank", str(out)),
        ]
        subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=1800)
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def environment(*packages: str) -> dict[str, Any]:
    """Return the machine and the versions that made a result; in a copy without git, the commit is None."""
    commit = _git("rev-parse", "HEAD")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "changed_since_commit": bool(_git("status", "--porcelain", "--", "opensora_launch")) if commit else None,
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
    }


def where(env: dict[str, Any]) -> str:
    """Return the line that goes under every table."""
    packages = ", ".join(f"{name} {version}" for name, version in env["packages"].items())
    return f"{env['cpu']}, {env['cores']} cores, load {env['load_before']} before the start; {packages}; {env['made']}."


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_result(name: str, data: dict[str, Any]) -> Path:
    """Write docs/benchmarks/NAME.json, whole or not at all."""
    path = RESULTS / f"{name}.json"
    write_text(path, json_text(data))
    return path


def json_text(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=1, default=_as_dict) + "\n"


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def between_markers(page: str, name: str, text: str) -> str:
    """Return the page with `text` between <!-- NAME --> and <!-- /NAME -->; ValueError if these lines are missing."""
    start, stop = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    head, found, rest = page.partition(start)
    _, ended, tail = rest.partition(stop)
    if not (found and ended):
        raise ValueError(f"the page has no lines {start.strip()} and {stop}")
    return f"{head}{start}{text}\n{stop}{tail}"


def _as_dict(value: Any) -> dict[str, Any]:
    assert isinstance(value, Spread), f"{value!r} cannot be written"
    return asdict(value)


def _git(*args: str) -> str | None:
    try:
        return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
