"""From the files of a run to report.json and report.md. Everything comes from files, so it can be built again."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opensora_launch.report.accounting import PARTS, Accounts, RankAccount, account, waited_for
from opensora_launch.report.efficiency import (
    Baseline,
    Times,
    efficiency,
    measured,
    predicted,
    refuse_other_work,
    work_of,
)
from opensora_launch.report.markdown import markdown, summary_lines
from opensora_launch.report.run_files import SCHEMA, Attempt, Run, read_report, read_run
from opensora_launch.report.steps import row_forwards, step_times

__all__ = ["SCHEMA", "build_report", "summary_lines"]

DIGITS = 6  # microseconds
DRIFT_S = 1e-3


def build_report(run_dir: Path, *, baseline: Path | None = None) -> dict[str, Any]:
    """Write report.json and report.md of a run, and return what report.json says (docs/report.md).

    `baseline` is another run's folder or report.json; without one the baseline is predicted. UserError if `run_dir` is
    no run, or if the baseline did other work.
    """
    run = read_run(run_dir)
    accounts = [account(a.events) if a.events else None for a in run.attempts]
    report = _report(run, accounts)
    _add_efficiency(report, accounts, read_report(baseline) if baseline else None)
    rounded: dict[str, Any] = _rounded(report)
    write_whole(run_dir / "report.json", json.dumps(rounded, ensure_ascii=False, indent=1) + "\n")
    write_whole(run_dir / "report.md", markdown(rounded))
    return rounded


def write_whole(path: Path, text: str) -> None:
    """Write aside, then rename: a reader sees all of it or nothing."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _report(run: Run, accounts: list[Accounts | None]) -> dict[str, Any]:
    metas = [e.meta for a in run.attempts for e in a.events]
    done = sum(bool(s.files) for s in run.samples)
    attentions = sorted({m.attention for m in metas if m.attention})
    return {
        "schema": SCHEMA,
        "run": run.name,
        "status": _status(run, done),
        "videos": {"asked": len(run.samples), "done": done},
        "command": run.command,
        "version": run.plan.version,
        "work": work_of(
            run.plan,
            device_names=[m.device_name for m in metas],
            attention=" + ".join(attentions) or None,
            row_forwards=row_forwards([a.events for a in run.attempts]),
        ),
        "machine": {
            "nodes": run.plan.machine.nodes,
            "ranks": run.plan.machine.ranks,
            "device": run.plan.machine.device,
            "device_names": sorted({m.device_name for m in metas}),
            "hosts": sorted({m.host for m in metas}),
            "threads_per_rank": run.plan.threads_per_rank,
        },
        "layouts": {str(rows): str(layout) for rows, layout in run.plan.layouts},
        "times": _times(run, done, accounts),
        "attempts": [_attempt(a, found) for a, found in zip(run.attempts, accounts, strict=True)],
        "samples": [asdict(s) for s in run.samples],
        "unknown": _unknown(run, bool(attentions)),
    }


def _status(run: Run, done: int) -> str:
    if done == len(run.samples):
        return "complete"
    return "failed" if run.attempts and run.attempts[-1].status == "failed" else "incomplete"


def _times(run: Run, done: int, accounts: list[Accounts | None]) -> dict[str, Any] | None:
    """What can be compared: the times of a run that made all its videos in one attempt that ended well."""
    if len(run.attempts) != 1 or run.attempts[0].status != "complete" or done != len(run.samples):
        return None
    found = accounts[0]
    if found is None or not (denoise_s := max(r.denoise_s for r in found.ranks)):
        return None
    return asdict(Times(run.plan.machine.ranks, found.wall_s, denoise_s))


def _why_no_times(report: Mapping[str, Any]) -> str:
    if report["status"] != "complete":
        return f"the run is {report['status']}: {report['videos']['done']} of {report['videos']['asked']} videos made"
    if (attempts := len(report["attempts"])) != 1:
        return f"the videos were made in {attempts} attempts, so the time is not one run's"
    if report["attempts"][0]["status"] != "complete":
        return "not every rank left its events to the end"
    return "no denoising was recorded"


def _add_efficiency(
    report: dict[str, Any], accounts: list[Accounts | None], baseline: Mapping[str, Any] | None
) -> None:
    """The efficiency, or the reason why there is none."""
    report |= {"efficiency": None, "efficiency_reason": None}
    if report["times"] is None:
        report["efficiency_reason"] = _why_no_times(report)
        return
    found: Baseline
    if baseline is not None:
        refuse_other_work(_rounded(report["work"]), baseline)
        found = measured(baseline)
        if baseline["version"] != report["version"]:
            report["unknown"].append(f"the baseline was made by version {baseline['version']}, this by another")
    elif report["times"]["gpus"] == 1:
        report["efficiency_reason"] = "one rank, and no other run was named as the baseline"
        return
    else:
        first = accounts[0]
        assert first is not None, "there are times"
        found = predicted(report["run"], first.ranks)
    report["efficiency"] = asdict(efficiency(Times(**report["times"]), found))


def _attempt(attempt: Attempt, accounts: Accounts | None) -> dict[str, Any]:
    ranks = accounts.ranks if accounts else ()
    hosts = {r.rank: r.host for r in ranks}
    failure = attempt.failure
    return {
        "attempt": attempt.number,
        "status": attempt.status,
        "command": attempt.command,
        "started_epoch_s": min((e.meta.start_epoch_s for e in attempt.events), default=None),
        "wall_s": accounts.wall_s if accounts else None,
        "videos": [v.name for v in attempt.plan.videos],
        "ranks": [_rank(r) for r in ranks],
        "missing_ranks": list(attempt.missing_ranks),
        "steps": [asdict(s) for s in step_times(attempt.events, ranks)],
        "waited_for": [
            {
                "rank": w.rank,
                "host": hosts[w.rank],
                "seconds": w.seconds,
                "by": {str(rank): seconds for rank, seconds in sorted(w.by.items())},
                "while_in": dict(sorted(w.while_in.items(), key=lambda found: -found[1])),
            }
            for w in (waited_for(accounts) if accounts else ())
        ],
        "failure": {k: v for k, v in asdict(failure).items() if k != "traceback"} if failure else None,
        "unknown": _attempt_unknown(attempt, accounts),
    }


def _rank(r: RankAccount) -> dict[str, Any]:
    return {
        "rank": r.rank,
        "host": r.host,
        "device_name": r.device_name,
        "wall_s": r.wall_s,
        "parts": {part: r.parts[part] for part in PARTS},
        "communication_by_axis": dict(sorted(r.communication_by_axis.items())),
        "own_row_forwards": r.row_forwards,
        "peak_memory_bytes": r.peak_memory_bytes,
        "complete": r.complete,
    }


def _attempt_unknown(attempt: Attempt, accounts: Accounts | None) -> list[str]:
    unknown = list(accounts.unknown) if accounts else []
    if attempt.missing_ranks:
        unknown.append(f"no events of rank {', '.join(map(str, attempt.missing_ranks))}")
    if cut := [e.meta.rank for e in attempt.events if e.end is None]:
        unknown.append(
            f"rank {', '.join(map(str, cut))} did not come to its end: its time after its last event is lost"
        )
    if bad := sum(e.bad_lines for e in attempt.events):
        unknown.append(f"{bad} lines of events cannot be read and are left out")
    if drift := [e.meta.rank for e in attempt.events if e.end and abs(e.end.clock_drift_s) > DRIFT_S]:
        unknown.append(f"the device's clock ran away from the host's by over 1 ms on rank {', '.join(map(str, drift))}")
    return unknown


def _unknown(run: Run, attention: bool) -> list[str]:
    unknown = ["this is one run: how much the times spread is not known"]
    unknown.append("a rank's wall time begins when it begins to note it: what its process did before is not in it")
    if not attention and run.plan.attention == "auto":
        unknown.append("which attention kernel ran was not recorded")
    return unknown


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
