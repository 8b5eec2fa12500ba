"""The comparison of two runs or sweeps as a page: differences, settings that differ, timelines under each other."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.errors import UserError
from opensora_launch.report.attempts import AttemptAnalysis
from opensora_launch.report.build import last_timeline, page
from opensora_launch.report.compare import Change
from opensora_launch.report.efficiency import engine_of
from opensora_launch.report.run_files import read_recorded_run
from opensora_launch.report.sweep import device_unit
from opensora_launch.report.wording import Message
from opensora_launch.rundir import RunDir

Pair = tuple[Path, Path]


def compare_page(
    paths: Pair,
    reports: tuple[Mapping[str, Any], Mapping[str, Any]],
    changes: Sequence[Change],
    worse: Sequence[Change],
    notes: Sequence[Message],
) -> str:
    """The whole page. `changes` in `worse` are marked. Timelines are drawn where a run's events are there."""
    names = [_name(path, report) for path, report in zip(paths, reports, strict=True)]
    of_runs = reports[0]["of"] == "run"
    timelines = [_timeline(path) if of_runs else None for path in paths]
    a, b = (dict(_settings(report)) for report in reports)
    unlike = [key for key in {**a, **b} if a.get(key) != b.get(key)]
    longest = max((drawn["wall_s"] for drawn in timelines if drawn), default=0.0)
    return page(
        {
            "kind": "compare",
            "title": f"{names[0]} | {names[1]}",
            "version": __version__,
            "unit": device_unit(reports[0]["machine"]["device"]) if of_runs else reports[0]["unit"],
            "of": reports[0]["of"],
            "names": names,
            "paths": [str(path) for path in paths],
            "commands": [report["command"] for report in reports],
            "changes": [asdict(change) | {"slower": change in worse} for change in changes],
            "notes": list(notes),
            "settings": [{"key": key, "a": a.get(key), "b": b.get(key)} for key in unlike],
            "timelines": [drawn and drawn | {"wall_s": longest} for drawn in timelines],  # on one time axis
            "curve": [] if of_runs else [line for pair in zip("AB", reports, strict=True) for line in _lines(*pair)],
        }
    )


def _name(path: Path, report: Mapping[str, Any]) -> str:
    return str(report["run"] if report["of"] == "run" else report["title"]) or path.name


def _timeline(path: Path) -> dict[str, Any] | None:
    """Of the only attempt; None where the run's files are elsewhere."""
    try:
        run = read_recorded_run(RunDir(path if path.is_dir() else path.parent))
    except UserError:
        return None
    return last_timeline([AttemptAnalysis.of(attempt) for attempt in run.attempts])


def _settings(report: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What may differ between runs of the same work, by name; messages are worded by the page."""
    yield "version", report["version"]
    if report["of"] == "sweep":
        yield "device", report["device"]
        return
    machine, environment = report["machine"], report["environment"]
    yield "engine", engine_of(report)
    yield "topology", f"{machine['nodes']} x {machine['ranks'] // machine['nodes']}"
    yield "devices", ", ".join(machine["device_names"])
    yield "hosts", ", ".join(machine["hosts"])
    yield "threads_per_rank", machine["threads_per_rank"]
    yield from ((f"layout, {rows}", layout) for rows, layout in report["layouts"].items())
    yield from ((f"placement, attempt {a['attempt']}", a.get("placement")) for a in report["attempts"][-1:])
    yield "driver", ", ".join(environment.get("drivers", ()))
    yield "environment profile", environment.get("profile")
    yield from environment.get("versions", {}).items()
    yield from environment.get("variables", {}).items()


def _lines(side: str, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    own = [line for line in report["curve"] if line["kind"] == "measured"]
    return [line | {"name": f"{side}: {line['name']}", "own": False} for line in own]
