"""From the files of a run to its reports. Everything comes from files, so it can be built again."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora_launch.report.document import NO_PRICES, Prices, Read, document
from opensora_launch.report.exports import metrics, ranks_csv, sweep_csv, trace
from opensora_launch.report.html import page
from opensora_launch.report.markdown import markdown, summary_lines
from opensora_launch.report.peers import peer_lines
from opensora_launch.report.rounding import rounded
from opensora_launch.report.run_files import SCHEMA, read_report, read_run
from opensora_launch.report.sweep import sweep_markdown
from opensora_launch.report.timeline import timeline
from opensora_launch.rundir import write_whole

__all__ = ["SCHEMA", "build_report", "summary_lines"]


def build_report(run_dir: Path, *, baseline: Path | None = None, prices: Prices = NO_PRICES) -> dict[str, Any]:
    """Write report.json and its other forms (docs/report.md) of a run, and return what report.json says.

    `baseline` is another run's folder or report.json; without one the baseline is predicted. UserError if `run_dir` is
    no run, or if the baseline did other work.
    """
    run = read_run(run_dir)
    read = [Read.of(attempt) for attempt in run.attempts]
    report: dict[str, Any] = rounded(document(run, read, read_report(baseline) if baseline else None, prices))
    write_whole(run_dir / "report.json", json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    write_whole(run_dir / "report.md", markdown(report))
    write_whole(run_dir / "report.html", page(run_data(report, read)))
    write_whole(run_dir / "metrics.prom", metrics(report))
    write_whole(run_dir / "ranks.csv", ranks_csv(report))
    if last := next((r for r in reversed(read) if r.accounts), None):
        assert last.accounts is not None
        write_whole(run_dir / "trace.json", "".join(trace(last.attempt.events, last.accounts, last.nodes)))
    return report


def run_data(report: Mapping[str, Any], read: Sequence[Read]) -> dict[str, Any]:
    """What the page of one run draws. Of several attempts the last that left events has a timeline."""
    last = next((r for r in reversed(read) if r.accounts), None)
    drawn = timeline(last.accounts, last.nodes) if last and last.accounts else None
    return {
        "kind": "run",
        "title": report["run"],
        "version": report["version"],
        "report": report,
        "curve": _curve(report),
        "timeline": drawn,
    }


def _curve(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """This run and its baseline, and what others published."""
    if report["efficiency"] is None:
        return []
    job, kind = report["efficiency"]["job"], report["efficiency"]["baseline"]["kind"]
    base, own = (job["gpus_base"], job["t_base_s"]), (job["gpus"], job["t_s"])
    points = [
        {"gpus": n, "seconds": t, "speedup": speedup, "efficiency": efficiency, "kind": which}
        for (n, t), speedup, efficiency, which in (
            (base, float(base[0]), 1.0, kind),
            (own, job["speedup"] * base[0], job["efficiency"], "measured"),
        )
    ]
    published = [line | {"kind": "published"} for line in peer_lines()]
    return [{"name": "", "own": True, "kind": "measured", "points": points}, *published]


def build_sweep(folder: Path, data: Mapping[str, Any], name: str = "report") -> None:
    """Write a sweep, or published figures, as NAME.json, NAME.md, NAME.html and NAME.csv."""
    rounded_data = rounded(data)
    write_whole(folder / f"{name}.json", json.dumps(rounded_data, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder / f"{name}.md", sweep_markdown(rounded_data))
    write_whole(folder / f"{name}.html", page(rounded_data))
    write_whole(folder / f"{name}.csv", sweep_csv(rounded_data))
