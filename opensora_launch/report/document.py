"""What report.json says about a run, as one dict; docs/report.md explains each field."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from opensora_launch.report.advice import advise
from opensora_launch.report.attempts import AttemptAnalysis, attempt_document, last_with_events
from opensora_launch.report.efficiency import (
    STORED,
    Times,
    comparable_work,
    efficiency,
    engine_of,
    measured_baseline,
    predicted_baseline,
    refuse_other_work,
)
from opensora_launch.report.losses import verdict
from opensora_launch.report.prediction import PredictedRun, beside_measured, faster_settings, predict_run
from opensora_launch.report.rates import Prices, compute_rates, cost, energy, imbalance, karp_flatt, link_rates
from opensora_launch.report.run_files import REPORT_SCHEMA, RecordedEnvironment, RecordedRun
from opensora_launch.report.steps import count_row_forwards
from opensora_launch.report.whole_wait import whole_wait
from opensora_launch.report.wording import Message, message

DIGITS = 6  # of seconds: microseconds


def rounded(value: Any) -> Any:
    """Round seconds to microseconds, at any depth; the digits beyond are noise."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list | tuple) else value


def document(
    run: RecordedRun, analyses: Sequence[AttemptAnalysis], baseline: Mapping[str, Any] | None, prices: Prices
) -> dict[str, Any]:
    """The whole report. UserError if the baseline did other work."""
    report = _report(run, analyses)
    _add_efficiency(report, analyses, baseline)
    _add_rates(report, run, analyses, prices)
    found: dict[str, Any] = rounded(report)
    return found


def _report(run: RecordedRun, analyses: Sequence[AttemptAnalysis]) -> dict[str, Any]:
    metas = [e.meta for a in run.attempts for e in a.events]
    done = sum(bool(v["files"]) for v in run.videos)
    wait = whole_wait(run.attempts, analyses[-1].accounts if analyses else None)
    attentions = sorted({m.attention for m in metas if m.attention})
    return {
        "schema": REPORT_SCHEMA,
        "run": run.name,
        "status": _status(run, done),
        "verdict": _verdict(run, done, analyses),
        "videos": {"asked": len(run.videos), "done": done, "failed": sum(v["failure"] is not None for v in run.videos)},
        "command": run.command,
        "version": run.plan.version,
        "work": comparable_work(
            run.plan,
            device_names=[m.device_name for m in metas],
            attention=" + ".join(attentions) or None,
            row_forwards=count_row_forwards([a.events for a in run.attempts]),
        ),
        "machine": {
            "nodes": run.plan.machine.nodes,
            "ranks": run.plan.machine.ranks,
            "device": run.plan.machine.device,
            "device_names": sorted({m.device_name for m in metas}),
            "hosts": sorted({m.host for m in metas}),
            "threads_per_rank": run.plan.threads_per_rank,
        },
        "environment": _environment(run),
        "layouts": {str(rows): str(layout) for rows, layout in run.plan.layouts},
        "engine": run.plan.engine.value,
        "approximate": list(run.plan.approximate),
        "times": _times(run, done, analyses),
        "wait": wait,
        "attempts": [attempt_document(a) for a in analyses],
        "samples": list(run.videos),
        "previews": {name: list(files) for name, files in run.previews.items()},
        "unknown": _unknown(run, bool(attentions), wait is not None),
    }


def _environment(run: RecordedRun) -> dict[str, Any]:
    """Versions and variables of the ranks, from the last attempt that left them."""
    versions = [e.meta.versions for a in run.attempts for e in a.events if e.meta.versions]
    last = asdict(next((a.environment for a in reversed(run.attempts) if a.environment), RecordedEnvironment()))
    return {
        "versions": dict(versions[-1]) if versions else {},
        "drivers": sorted({n.driver for a in run.attempts for n in a.nodes if n.driver}),
        "variables": last.pop("environment"),
        **last,
    }


def _status(run: RecordedRun, done: int) -> str:
    if done == len(run.videos):
        return "complete"
    failed = (run.attempts and run.attempts[-1].status == "failed") or any(v["failure"] for v in run.videos)
    stopped = run.attempts and run.attempts[-1].stopped_by
    return "failed" if failed else "stopped" if stopped else "incomplete"


def _verdict(run: RecordedRun, done: int, analyses: Sequence[AttemptAnalysis]) -> Message:
    """The first thing to read: why a run did not end well, or what its last attempt lost most by."""
    if (status := _status(run, done)) != "complete":
        last_one = run.attempts[-1] if run.attempts else None
        why = last_one.failure.message.splitlines()[0] if last_one and last_one.failure else None
        return _not_complete(status, len(run.videos), done, by=last_one.stopped_by if last_one else None, why=why)
    last = last_with_events(analyses)
    return verdict(last.losses) if last else message("verdict_unknown")


def _not_complete(status: str, asked: int, done: int, *, by: str | None = None, why: str | None = None) -> Message:
    if status == "stopped":
        return message("run_stopped", asked=asked, done=done, by=by)
    return message("run_failed" if status == "failed" else "run_incomplete", asked=asked, done=done, why=why)


def _times(run: RecordedRun, done: int, analyses: Sequence[AttemptAnalysis]) -> dict[str, Any] | None:
    """The times that can be compared: of a run that made all its videos in one attempt that ended well."""
    if len(run.attempts) != 1 or run.attempts[0].status != "complete" or done != len(run.videos):
        return None
    found = analyses[0].accounts
    if found is None or not (denoise_s := max(r.denoise_s for r in found.ranks)):
        return None
    return asdict(Times(run.plan.machine.ranks, found.wall_s, denoise_s))


def _why_no_times(report: Mapping[str, Any]) -> Message:
    if report["status"] != "complete":
        return _not_complete(report["status"], report["videos"]["asked"], report["videos"]["done"])
    if (attempts := len(report["attempts"])) != 1:
        return message("several_attempts", attempts=attempts)
    if report["attempts"][0]["status"] != "complete":
        return message("ranks_not_finished")
    return message("no_denoising")


def _add_efficiency(
    report: dict[str, Any], analyses: Sequence[AttemptAnalysis], baseline: Mapping[str, Any] | None
) -> None:
    """Add the efficiency, or the reason why there is none."""
    report |= {"efficiency": None, "efficiency_reason": None}
    if report["times"] is None:
        report["efficiency_reason"] = _why_no_times(report)
        return
    if baseline is not None:
        refuse_other_work(rounded(report["work"]), baseline)
        found = measured_baseline(baseline, report["machine"]["hosts"])
        if found.kind == STORED:
            report["unknown"].append(message("stored_baseline"))
        if (theirs := baseline["version"]) != (ours := report["version"]):
            report["unknown"].append(message("other_version", baseline_version=theirs, version=ours))
        if (theirs := engine_of(baseline)) != (ours := report["engine"]):
            report["unknown"].append(message("other_engine", baseline_engine=theirs, engine=ours))
    elif report["times"]["gpus"] == 1:
        report["efficiency_reason"] = message("single_rank")
        return
    else:
        first = analyses[0].accounts
        assert first is not None, "there are times"
        found = predicted_baseline(report["run"], first.ranks)
    report["efficiency"] = efficiency(Times(**report["times"]), found)


def _add_rates(report: dict[str, Any], run: RecordedRun, analyses: Sequence[AttemptAnalysis], prices: Prices) -> None:
    """Add what all attempts used, energy and cost, and what describes the last one: rates, links, advice."""
    names = ("rates", "links", "energy", "cost", "imbalance", "serial_share", "advice", "prediction")
    report |= dict.fromkeys(names) | {"links": [], "advice": [], "prediction_reason": message("no_events")}
    last = analyses[-1] if analyses else None
    if last is None or last.accounts is None:
        return
    accounts, plan = last.accounts, last.attempt.plan
    gpus = plan.machine.device == "cuda"
    card = run.config.hardware if gpus and run.config and run.config.hardware.known else None
    ran = predict_run(run.config, plan)
    known = ran if isinstance(ran, PredictedRun) else None
    advice = advise(plan, accounts, last.findings, faster_settings(known, plan) if known else None)
    videos = report["videos"]["done"]
    used = [attempt for attempt in report["attempts"] if attempt["ranks"]]
    usd_per_gpu_hour = prices.usd_per_gpu_hour
    if usd_per_gpu_hour is None and run.config:
        usd_per_gpu_hour = run.config.estimate.usd_per_gpu_hour
    report |= {
        "rates": compute_rates(plan, accounts, count_row_forwards([last.attempt.events]), card),
        "links": link_rates(plan, accounts, card),
        "energy": energy(used, videos, prices.usd_per_kwh),
        "cost": cost(used, videos, usd_per_gpu_hour),
        "imbalance": imbalance(accounts),
        "advice": advice,
        "prediction": beside_measured(known, accounts) if known else None,
        "prediction_reason": None if isinstance(ran, PredictedRun) else ran,
    }
    if (found := report["efficiency"]) and found["baseline"]["times"]["gpus"] == 1:
        report["serial_share"] = {
            scope: karp_flatt(found[scope]["speedup"], found[scope]["gpus"]) for scope in ("job", "denoise")
        }


def _unknown(run: RecordedRun, attention: bool, wait: bool) -> list[Message]:
    unknown = [message("single_run"), *run.unknown, *([] if wait else [message("recording_starts_late")])]
    if not attention and run.plan.attention == "auto":
        unknown.append(message("kernel_unknown"))
    by_rank = {tuple(sorted((e.meta.versions or {}).items())) for a in run.attempts for e in a.events}
    if len(by_rank) > 1:
        unknown.append(message("rank_versions_differ"))
    return unknown
