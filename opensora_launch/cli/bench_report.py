"""One report over all runs of a sweep that count."""

from collections.abc import Mapping, Sequence
from typing import Any

from opensora_launch import __version__
from opensora_launch.report.build import build_sweep
from opensora_launch.report.run_files import read_report
from opensora_launch.report.sweep import Point, sweep
from opensora_launch.request.sweep_plan import Sweep
from opensora_launch.rundir import SweepDir

CROWDED = 0.2  # of the CPUs, that others used before a run


def report_sweep(folder: SweepDir, plan: Sweep) -> dict[str, Any] | None:
    """Write the sweep's reports, and return what they say; None where no run that counts has ended well."""
    reports = {d.run: read_report(folder.run(d.run).path) for d in plan.done}
    points, unknown, counted = list[Point](), _weaknesses(plan), list[dict[str, Any]]()
    for place, spot in enumerate(plan.spots):
        runs = [d.run for d in plan.done if d.spot == place and d.round >= plan.warmup and reports[d.run]["times"]]
        if not runs:
            unknown.append(f"{spot.series} on {spot.size} has no run that ended well")
            continue
        counted += (reports[run] for run in runs)
        first = reports[runs[0]]
        layouts = "; ".join(f"{rows}: {layout}" for rows, layout in first["layouts"].items())
        seconds = tuple(reports[run]["times"]["job_s"] for run in runs)
        works = tuple(reports[run]["work"] for run in runs)
        points.append(Point(spot.series, spot.gpus, seconds, layouts, runs[0], f"{runs[0]}/report.html", works))
    if not points:
        return None
    data = _sweep(folder, plan, points, [*unknown, *_changes(counted)], counted[0])
    build_sweep(folder.path, data)
    return data


def _sweep(
    folder: SweepDir, plan: Sweep, points: list[Point], unknown: list[str], first: Mapping[str, Any]
) -> dict[str, Any]:
    command = folder.command
    return sweep(
        folder.path.resolve().name,
        points,
        version=__version__,
        weak=plan.weak,
        kind="sweep",
        unit="GPU" if first["machine"]["device"] == "cuda" else "CPU rank",
        device=", ".join(first["machine"]["device_names"]),
        command=command.read_text(encoding="utf-8").strip() if command.exists() else None,
        unknown=unknown,
        peers=True,
    )


def _weaknesses(plan: Sweep) -> list[str]:
    unknown = []
    looks = [d.busy for d in plan.done if d.round >= plan.warmup]
    crowded = [busy for busy in looks if busy is not None and busy > CROWDED]
    if plan.elsewhere:
        unknown.append("whether the nodes did something else too is not known: the ranks were on other machines")
    elif None in looks:
        unknown.append("whether the machine was idle is not known: its kernel does not tell")
    if crowded:
        unknown.append(
            f"the machine was not idle before {len(crowded)} of {len(looks)} runs: "
            f"others used up to {max(crowded):.0%} of its CPUs"
        )
    if plan.repeats < 2:
        unknown.append("one repeat: how much the times spread is not known")
    if plan.warmup == 0:
        unknown.append("no warm-up: the first runs read files that later ones find in memory")
    return unknown


def _changes(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was not the same for all runs: a sweep that is resumed may go on later, on another host."""
    hosts = [set(r["machine"]["hosts"]) for r in reports]
    everywhere = set[str]().union(*hosts)
    versions = sorted({r["version"] for r in reports})
    lines = []
    if everywhere not in hosts:  # runs on fewer nodes than others may use some of theirs
        lines.append(f"the runs were not on the same hosts: {', '.join(sorted(everywhere))}")
    if len(versions) > 1:
        lines.append(f"the runs were made by several versions of opensora_launch: {', '.join(versions)}")
    packages = [r["environment"]["versions"] for r in reports]
    everyones = set(packages[0]).intersection(*packages)  # an engine's own are in its runs only
    if any(p[name] != packages[0][name] for p in packages for name in everyones):
        lines.append("not all runs had the same versions of Python and packages")
    return lines


def is_sweep(folder: SweepDir) -> bool:
    return folder.state.is_file()
