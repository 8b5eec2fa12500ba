"""Make one report from all runs of a sweep that count."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from opensora_launch import __version__
from opensora_launch.report.build import build_sweep
from opensora_launch.report.published import peer_lines
from opensora_launch.report.run_files import read_report
from opensora_launch.report.scaling import MeasuredPoint, explain_scaling
from opensora_launch.report.sweep import SweepPoint, device_unit, size, sweep_report
from opensora_launch.report.wording import Message, message
from opensora_launch.rundir import SweepDir
from opensora_launch.runs.sweep_state import Sweep

CROWDED = 0.2  # of the CPUs that other programs used before a run


def report_sweep(folder: SweepDir, plan: Sweep) -> dict[str, Any] | None:
    """Write the sweep's reports, and return what they say; None if no run that counts was successful."""
    reports = {d.run: read_report(folder.run(d.run).path) for d in plan.done}
    points, unknown, counted = list[SweepPoint](), _limits(plan), list[dict[str, Any]]()
    measured = list[MeasuredPoint]()
    for place, point in enumerate(plan.points):
        runs = [d.run for d in plan.done if d.point == place and d.round >= plan.warmup and reports[d.run]["times"]]
        if not runs:
            of_point = size(point.gpus, device_unit(point.device))
            unknown.append(message("no_successful_run", name=point.series, size=of_point))
            continue
        counted += (reports[run] for run in runs)
        first = reports[runs[0]]
        alike = len({*first["layouts"].values()}) == 1
        named = {layout if alike else f"{rows}: {layout}": None for rows, layout in first["layouts"].items()}
        seconds = tuple(reports[run]["times"]["job_s"] for run in runs)
        works = tuple(reports[run]["work"] for run in runs)
        usual_s = median(seconds)
        nearest = min(runs, key=lambda run: abs(reports[run]["times"]["job_s"] - usual_s))
        measured.append(MeasuredPoint(point.series, point.gpus, usual_s, reports[nearest]))
        layout, page = "; ".join(named), f"{runs[0]}/report.html"
        points.append(SweepPoint(point.series, point.gpus, seconds, layout, runs[0], page, works))
    if not points:
        return None
    machine, command = counted[0]["machine"], folder.command
    data = sweep_report(
        folder.path.resolve().name,
        points,
        version=__version__,
        weak=plan.weak,
        unit=device_unit(machine["device"]),
        device=", ".join(machine["device_names"]),
        command=command.read_text(encoding="utf-8").strip() if command.exists() else None,
        unknown=[*unknown, *_changes(counted)],
        peers=peer_lines(counted[0]["work"]),
    )
    own = [line for line in data["curve"] if line["kind"] == "measured"]
    sizes = {m.gpus: size(m.gpus, data["unit"]) for m in measured}
    data["explained"] = [explain_scaling(line, measured, weak=plan.weak, unit_of=sizes) for line in own]
    build_sweep(folder.path, data)
    return data


def _limits(plan: Sweep) -> list[Message]:
    unknown = []
    looks = [d.busy for d in plan.done if d.round >= plan.warmup]
    crowded = [busy for busy in looks if busy is not None and busy > CROWDED]
    if plan.elsewhere:
        unknown.append(message("nodes_unwatched"))
    elif None in looks:
        unknown.append(message("idleness_unknown"))
    if crowded:
        unknown.append(message("machine_busy", busy=len(crowded), runs=len(looks), share=max(crowded)))
    if plan.repeats < 2:
        unknown.append(message("one_repeat"))
    if plan.warmup == 0:
        unknown.append(message("no_warmup"))
    return unknown


def _changes(reports: Sequence[Mapping[str, Any]]) -> list[Message]:
    """What was not the same for all runs: a sweep that is resumed may continue later, on another host."""
    hosts = [set(r["machine"]["hosts"]) for r in reports]
    everywhere = set[str]().union(*hosts)
    versions = sorted({r["version"] for r in reports})
    found = []
    if everywhere not in hosts:  # runs on fewer nodes than others may use some of theirs
        found.append(message("other_hosts", hosts=sorted(everywhere)))
    if len(versions) > 1:
        found.append(message("other_versions", versions=versions))
    packages = [r["environment"]["versions"] for r in reports]
    everyones = set(packages[0]).intersection(*packages)  # an engine's own are in its runs only
    if any(p[name] != packages[0][name] for p in packages for name in everyones):
        found.append(message("other_packages"))
    return found
