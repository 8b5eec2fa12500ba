"""`opensora-launch bench gpus=[1,2,4]`: a scaling sweep that ends in one report. Every run is a `generate` of its own.

Runs never overlap, so each has the machine for itself. Rounds go through all points, every second one backwards, so
that drift hits all alike; the first rounds are warm-up and left out.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.compose import compose
from opensora_launch.cli.flags import Parsed
from opensora_launch.errors import UserError
from opensora_launch.launch.machine import count_cpus
from opensora_launch.launch.run_dir import make_folder, write_whole
from opensora_launch.report.build import build_sweep
from opensora_launch.report.efficiency import differences
from opensora_launch.report.sweep import Point, sweep

STATE = "sweep.json"
OWN = {"gpus": "[1,2]", "repeats": "3", "warmup": "1", "scaling": "strong"}
NOT_WORK = ("videos", "row_forwards")  # that grow with the GPUs in weak scaling
CROWDED = 0.5  # of the cores, that others used when the sweep began


@dataclass(frozen=True)
class Spot:
    """One point of the sweep: `series` names what it shares with other counts of GPUs."""

    series: str
    nodes: int
    gpus_per_node: int
    overrides: tuple[str, ...]

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Done:
    """One run that ended well."""

    spot: int
    round: int
    run: str  # its folder, in the sweep's


@dataclass(frozen=True)
class Sweep:
    """What sweep.json holds: what to run, and what is done."""

    argv: tuple[str, ...]
    spots: tuple[Spot, ...]
    repeats: int
    warmup: int
    weak: bool
    load: float  # of the machine when the sweep began, in cores
    done: tuple[Done, ...]


def bench(parsed: Parsed) -> int:
    """Run what is missing of a sweep and write its report; the exit code."""
    resumed = parsed.one("--resume")
    folder, plan = (Path(resumed), read_sweep(Path(resumed))) if resumed else _new(parsed)
    todo = [(r, s) for r in range(plan.warmup + plan.repeats) for s in order(len(plan.spots), r)]
    have = {(d.round, d.spot) for d in plan.done}
    failed: set[int] = set()
    for number, (round_, place) in enumerate(todo, start=1):
        if (round_, place) in have or place in failed:
            continue
        spot = plan.spots[place]
        kind = "warm-up" if round_ < plan.warmup else f"repeat {round_ - plan.warmup + 1}"
        print(f"run {number} of {len(todo)}: {spot.series}, {spot.gpus} GPUs, {kind}", flush=True)
        run = _run(folder, plan.argv, spot)
        if run is None:
            failed.add(place)
            continue
        plan = Sweep(**{**vars(plan), "done": (*plan.done, Done(place, round_, run))})
        _write(folder, plan)
    _report(folder, plan)
    print(f"report: {folder / 'report.html'}")
    if failed:
        names = ", ".join(f"{plan.spots[n].series} on {plan.spots[n].gpus}" for n in sorted(failed))
        print(f"failed: {names}; go on with: opensora-launch bench --resume {folder}", file=sys.stderr)
    return 1 if failed else 0


def order(count: int, round_: int) -> list[int]:
    """Of the points in a round: every second one goes backwards."""
    return list(range(count))[:: 1 if round_ % 2 == 0 else -1]


def spots_of(words: Sequence[str], config_dir: Path | None) -> tuple[list[Spot], dict[str, str]]:
    """The points of a command line, and bench's own settings. UserError with everything that is wrong."""
    own = OWN | {key: value for key, _, value in (w.partition("=") for w in words) if key in OWN}
    rest = [w for w in words if w.partition("=")[0] not in OWN]
    counts = re.findall(r"\d+(?:x\d+)?", own["gpus"])
    problems = []
    if not re.fullmatch(r"\[?\d+(x\d+)?(,\d+(x\d+)?)*\]?", own["gpus"]) or any(
        int(n) < 1 for n in counts[0:] if "x" not in n
    ):
        problems.append(f"gpus={own['gpus']} must be counts of GPUs, such as [1,2,4,2x8]; 2x8 is nodes x GPUs")
    for name, least in (("repeats", 1), ("warmup", 0)):
        if not own[name].isdigit() or int(own[name]) < least:
            problems.append(f"{name}={own[name]} must be a whole number of at least {least}")
    if own["scaling"] not in ("strong", "weak"):
        problems.append(f"scaling={own['scaling']} must be strong (equal work) or weak (work grows with the GPUs)")
    if problems:
        raise UserError("this sweep cannot start", problems)
    found = []
    if not any(w.startswith("launcher.threads_per_rank=") for w in rest):  # as many on every count: it is equal work
        most = max(int(text.rpartition("x")[2]) for text in counts)
        rest.append(f"launcher.threads_per_rank={max(1, count_cpus() // most)}")
    for point in compose(rest, multirun=True, config_dir=config_dir).points:
        series = " ".join(point.swept) or point.run.model.name
        for text in counts:
            nodes, _, per_node = text.rpartition("x")
            here = [f"topology.nodes={nodes or 1}", f"topology.gpus_per_node={per_node}"]
            if own["scaling"] == "weak":
                here.append(f"sampling.num_samples={int(nodes or 1) * int(per_node)}")
            found.append(Spot(series, int(nodes or 1), int(per_node), (*point.overrides, *here)))
    return found, own


def read_sweep(folder: Path) -> Sweep:
    try:
        data = json.loads((folder / STATE).read_text(encoding="utf-8"))
        spots = tuple(Spot(**(s | {"overrides": tuple(s["overrides"])})) for s in data["spots"])
        return Sweep(
            **(data | {"argv": tuple(data["argv"]), "spots": spots, "done": tuple(Done(**d) for d in data["done"])})
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is no sweep: {STATE} cannot be read ({error})") from error


def _new(parsed: Parsed) -> tuple[Path, Sweep]:
    config_dir = parsed.one("--config-dir")
    spots, own = spots_of(parsed.rest, Path(config_dir) if config_dir else None)
    flags = [word for name in ("--config-dir", "--prompt", "--prompts") for v in parsed.all(name) for word in (name, v)]
    if not parsed.has("--prompt") and not parsed.has("--prompts"):
        flags += ["--prompt", "waves at dusk"]
    folder = make_folder(Path("runs").absolute(), f"bench-{datetime.now():%Y%m%d-%H%M%S}")
    plan = Sweep(
        tuple(flags), tuple(spots), int(own["repeats"]), int(own["warmup"]), own["scaling"] == "weak",
        os.getloadavg()[0], (),
    )  # fmt: skip
    _write(folder, plan)
    write_whole(folder / "command.txt", shlex.join(["opensora-launch", "bench", *parsed.rest]) + "\n")
    return folder, plan


def _write(folder: Path, plan: Sweep) -> None:
    write_whole(folder / STATE, json.dumps(asdict(plan), ensure_ascii=False, indent=1) + "\n")


def _run(folder: Path, argv: Sequence[str], spot: Spot) -> str | None:
    """One `generate`, waited for; the run's folder, or None if it failed. What it prints goes to bench.log."""
    words = [*argv, *spot.overrides, f"runs_dir={folder}"]
    if any(w.startswith("launcher=slurm") for w in spot.overrides):
        words.append("launcher.slurm.follow=true")
    command = [sys.executable, "-m", "opensora_launch.cli", "generate", *words]
    before = {p.name for p in folder.iterdir()}
    with (folder / "bench.log").open("ab") as log:
        code = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode
    new = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in before)
    if code or not new or not (folder / new[-1] / "report.json").exists():
        print(f"failed with exit code {code}; see {folder / 'bench.log'}", file=sys.stderr)
        return None
    return new[-1]


def _report(folder: Path, plan: Sweep) -> None:
    """One report over all runs that count."""
    reports: dict[str, dict[str, Any]] = {
        d.run: json.loads((folder / d.run / "report.json").read_text(encoding="utf-8")) for d in plan.done
    }
    points, unknown = [], _weaknesses(plan)
    for place, spot in enumerate(plan.spots):
        runs = [d.run for d in plan.done if d.spot == place and d.round >= plan.warmup and reports[d.run]["times"]]
        if not runs:
            unknown.append(f"{spot.series} on {spot.gpus} GPUs has no run that ended well")
            continue
        first = reports[runs[0]]
        layouts = "; ".join(f"{rows}: {layout}" for rows, layout in first["layouts"].items())
        seconds = tuple(reports[run]["times"]["job_s"] for run in runs)
        points.append(Point(spot.series, spot.gpus, seconds, layouts, runs[0], f"{runs[0]}/report.html"))
        unknown += _other_work(spot, first, next(p for p in points if p.series == spot.series), reports, plan.weak)
    if not points:
        raise UserError(f"no run of {folder} ended well; see {folder / 'bench.log'}")
    device = ", ".join(reports[points[0].source]["machine"]["device_names"])
    command = (
        (folder / "command.txt").read_text(encoding="utf-8").strip() if (folder / "command.txt").exists() else None
    )
    kind = {"kind": "sweep", "device": device, "command": command, "unknown": unknown, "peers": True}
    build_sweep(folder, sweep(folder.name, points, version=__version__, weak=plan.weak, **kind))


def _other_work(
    spot: Spot, report: dict[str, Any], base: Point, reports: dict[str, dict[str, Any]], weak: bool
) -> list[str]:
    """What a point did otherwise than the first of its series: then its efficiency compares different things."""
    skip = NOT_WORK if weak else ()
    mine, theirs = ({k: v for k, v in r["work"].items() if k not in skip} for r in (report, reports[base.source]))
    return [f"{spot.series} on {spot.gpus} GPUs did other work: {line}" for line in differences(mine, theirs)]


def _weaknesses(plan: Sweep) -> list[str]:
    unknown = []
    if plan.load > CROWDED * (os.cpu_count() or 1):
        unknown.append(f"the machine was not idle when the sweep began: its load was {plan.load:.1f}")
    if plan.repeats < 2:
        unknown.append("one repeat: how much the times spread is not known")
    if plan.warmup == 0:
        unknown.append("no warm-up: the first runs read files that later ones find in memory")
    return unknown
