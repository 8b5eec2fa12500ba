"""Make the reports of a run from its files. Everything comes from files, so they can be made again at any time."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from opensora_launch.report.attempts import AttemptAnalysis, last_with_events
from opensora_launch.report.csv_tables import ranks_csv, sweep_csv
from opensora_launch.report.document import document, rounded
from opensora_launch.report.markdown import run_markdown
from opensora_launch.report.metrics import metrics
from opensora_launch.report.published import peer_lines
from opensora_launch.report.rates import Prices
from opensora_launch.report.run_files import RecordedRun, read_recorded_run, read_report
from opensora_launch.report.sweep_markdown import sweep_markdown
from opensora_launch.report.timeline import timeline
from opensora_launch.report.trace import trace
from opensora_launch.report.whole_wait import whole_wait
from opensora_launch.report.wording import LANGUAGES, templates
from opensora_launch.rundir import RunDir, write_whole
from opensora_launch.runs.waited import record_waited

PAGE_FILES = (
    "page.css", "words.js", "draw.js", "tables.js", "charts.js", "gallery.js", "scaling.js", "plots.js", "timeline.js",
    "previews.js", "compare.js", "page.js",
)  # fmt: skip
NO_PRICES = Prices()


def build_report(
    run_dir: Path, *, baseline: Path | None = None, prices: Prices = NO_PRICES, waiting: bool = False
) -> dict[str, Any]:
    """Write a run's report.json and its other forms (docs/report.md), and return what report.json says.

    `baseline` is another run's folder or report.json; without one the baseline is predicted. `waiting`: the user has
    waited for this report, so it ends the last attempt's wait. UserError if `run_dir` is no run, or if the baseline did
    other work.
    """
    folder = RunDir(run_dir)
    run = read_recorded_run(folder)
    analyses = [AttemptAnalysis.of(attempt) for attempt in run.attempts]
    report = document(run, analyses, read_report(baseline) if baseline else None, prices)
    write_whole(folder.metrics, metrics(report))
    write_whole(folder.ranks_csv, ranks_csv(report))
    if (last := last_with_events(analyses)) and last.accounts:
        write_whole(folder.trace, trace(last.attempt.events, last.accounts, last.nodes))
    if waiting and report["wait"]:
        report["wait"] = rounded(_ended_wait(folder, run, analyses[-1]))
    write_whole(folder.report_json, json.dumps(report, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder.report_markdown, run_markdown(report))
    write_whole(folder.report_page, page(run_data(report, analyses)))
    return report


def _ended_wait(folder: RunDir, run: RecordedRun, last: AttemptAnalysis) -> dict[str, Any] | None:
    """Record that the user's wait for the last attempt ends now; return the wait."""
    attempt = last.attempt
    assert attempt.waited is not None, "there is a wait"
    waited = replace(attempt.waited, done_epoch_s=time.time())
    record_waited(folder.attempt(attempt.number), waited)
    return whole_wait([*run.attempts[:-1], replace(attempt, waited=waited)], last.accounts)


def run_data(report: Mapping[str, Any], analyses: Sequence[AttemptAnalysis]) -> dict[str, Any]:
    """What the page of one run draws."""
    return {
        "kind": "run",
        "title": report["run"],
        "version": report["version"],
        "report": report,
        "curve": _curve(report),
        "timeline": last_timeline(analyses),
    }


def last_timeline(analyses: Sequence[AttemptAnalysis]) -> dict[str, Any] | None:
    """The timeline of the last attempt that left events."""
    last = last_with_events(analyses)
    return timeline(last.accounts, last.nodes, last.attempt.events) if last and last.accounts else None


def _curve(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """This run, its baseline, and published figures."""
    if report["efficiency"] is None:
        return []
    job, kind = report["efficiency"]["job"], report["efficiency"]["baseline"]["kind"]
    base = job["gpus_base"]
    names = ("gpus", "seconds", "speedup", "efficiency", "kind")
    first = (base, job["t_base_s"], float(base), 1.0, kind)
    own = (job["gpus"], job["t_s"], job["speedup"] * base, job["efficiency"], "measured")
    points = [dict(zip(names, point, strict=True)) for point in (first, own)]
    return [{"name": "", "own": True, "kind": "measured", "points": points}, *peer_lines(report["work"])]


def build_sweep(folder: Path, data: Mapping[str, Any], name: str = "report") -> None:
    """Write a sweep, or published figures, as NAME.json, NAME.md, NAME.html and NAME.csv."""
    rounded_data = rounded(data)
    write_whole(folder / f"{name}.json", json.dumps(rounded_data, ensure_ascii=False, indent=1) + "\n")
    write_whole(folder / f"{name}.md", sweep_markdown(rounded_data))
    write_whole(folder / f"{name}.html", page(rounded_data))
    write_whole(folder / f"{name}.csv", sweep_csv(rounded_data))


def page(data: Mapping[str, Any]) -> str:
    """Make report.html, one file without any other, of a run or a sweep. page/page.js says what it reads of `data`."""
    folder = resources.files("opensora_launch.report") / "page"
    style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in PAGE_FILES)
    words = f"const WORDS = {_in_script({language: templates(language) for language in LANGUAGES})};"
    return (
        (folder / "page.html")
        .read_text(encoding="utf-8")
        .replace("{{title}}", escape(str(data["title"])))
        .replace("{{style}}", style)
        .replace("{{script}}", "\n".join([words, *scripts]))
        .replace("{{data}}", _in_script(data))
    )


def _in_script(data: Mapping[str, Any]) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
