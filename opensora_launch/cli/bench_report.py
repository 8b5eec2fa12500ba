"""One report over all runs of a sweep that count."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.bench_plan import STATE, Spot, Sweep
from opensora_launch.errors import UserError
from opensora_launch.report.build import build_sweep
from opensora_launch.report.efficiency import differences
from opensora_launch.report.run_files import read_report
from opensora_launch.report.sweep import Point, sweep

NOT_WORK = ("videos", "row_forwards")  # that grow with the GPUs in weak scaling
CROWDED = 0.5  # of the cores, that others used when the sweep began


def report_sweep(folder: Path, plan: Sweep) -> dict[str, Any]:
    """Write the sweep's reports, and return what they say. UserError where no run has ended well."""
    reports = {d.run: read_report(folder / d.run) for d in plan.done}
    points, unknown = list[Point](), _weaknesses(plan)
    for place, spot in enumerate(plan.spots):
        runs = [d.run for d in plan.done if d.spot == place and d.round >= plan.warmup and reports[d.run]["times"]]
        if not runs:
            unknown.append(f"{spot.series} on {spot.size} has no run that ended well")
            continue
        first = reports[runs[0]]
        layouts = "; ".join(f"{rows}: {layout}" for rows, layout in first["layouts"].items())
        seconds = tuple(reports[run]["times"]["job_s"] for run in runs)
        points.append(
            Point(spot.series, spot.gpus, seconds, layouts, runs[0], f"{runs[0]}/report.html", work=first["work"])
        )
        base = next(p for p in points if p.series == spot.series)
        unknown += _other_work(spot, first, reports[base.source], plan.weak)
    if not points:
        raise UserError(f"no run of {folder} ended well; see {folder / 'bench.log'}")
    data = _sweep(folder, plan, points, unknown, reports[points[0].source])
    build_sweep(folder, data)
    return data


def _sweep(
    folder: Path, plan: Sweep, points: list[Point], unknown: list[str], first: Mapping[str, Any]
) -> dict[str, Any]:
    command = folder / "command.txt"
    return sweep(
        folder.resolve().name,
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


def _other_work(spot: Spot, report: Mapping[str, Any], base: Mapping[str, Any], weak: bool) -> list[str]:
    """What a point did otherwise than the first of its series: then its efficiency compares different things."""
    skip = NOT_WORK if weak else ()
    mine, theirs = ({k: v for k, v in r["work"].items() if k not in skip} for r in (report, base))
    return [f"{spot.series} on {spot.size} did other work: {line}" for line in differences(mine, theirs)]


def _weaknesses(plan: Sweep) -> list[str]:
    unknown = []
    if plan.load is None:
        unknown.append("whether the nodes did something else too is not known: the ranks were on other machines")
    elif plan.load > CROWDED * (os.cpu_count() or 1):
        unknown.append(f"the machine was not idle when the sweep began: its load was {plan.load:.1f}")
    if plan.repeats < 2:
        unknown.append("one repeat: how much the times spread is not known")
    if plan.warmup == 0:
        unknown.append("no warm-up: the first runs read files that later ones find in memory")
    return unknown


def is_sweep(folder: Path) -> bool:
    return (folder / STATE).is_file()
