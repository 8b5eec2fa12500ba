"""What report.json says of a run, as one dict; docs/report.md explains each field."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opensora_launch.plan.placement import placement_text
from opensora_launch.report.accounting import PARTS, Accounts, RankAccount, account, waited_for
from opensora_launch.report.advice import advise
from opensora_launch.report.cards import card_of
from opensora_launch.report.efficiency import (
    STORED,
    Baseline,
    Times,
    efficiency,
    measured,
    other_engine,
    predicted,
    refuse_other_work,
    work_of,
)
from opensora_launch.report.findings import Finding, Scene, findings
from opensora_launch.report.machine import Node, gpu_uses, host_use, nodes_of, of_whole_cards
from opensora_launch.report.planned import as_it_ran, beside_measured, better_ways
from opensora_launch.report.rates import compute_rates, cost, energy, imbalance, karp_flatt, link_rates
from opensora_launch.report.rounding import rounded
from opensora_launch.report.run_files import SCHEMA, Attempt, Run
from opensora_launch.report.steps import row_forwards, step_times

DRIFT_S = 1e-3
NOT_PREDICTED = "no rank left events"


@dataclass(frozen=True)
class Prices:
    """What the user says that things cost; None is not known."""

    usd_per_gpu_hour: float | None = None
    usd_per_kwh: float | None = None


NO_PRICES = Prices()


@dataclass(frozen=True)
class Read:
    """An attempt, read: its accounts and nodes on one clock, and what was found."""

    attempt: Attempt
    accounts: Accounts | None
    nodes: tuple[Node, ...]
    findings: tuple[Finding, ...]

    @classmethod
    def of(cls, attempt: Attempt) -> "Read":
        if not attempt.events:
            return cls(attempt, None, (), ())
        accounts = account(attempt.events)
        nodes = nodes_of(attempt.nodes, accounts)
        scene = Scene(attempt.events, accounts, nodes, attempt.plan.model.mmdit.num_heads)
        return cls(attempt, accounts, nodes, tuple(findings(scene)))


def document(run: Run, read: Sequence[Read], baseline: Mapping[str, Any] | None, prices: Prices) -> dict[str, Any]:
    """The whole report. UserError if the baseline did other work."""
    accounts = [r.accounts for r in read]
    report = _report(run, read)
    _add_efficiency(report, accounts, baseline)
    _add_rates(report, run, read, prices)
    return report


def _report(run: Run, read: Sequence[Read]) -> dict[str, Any]:
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
        "environment": _environment(run),
        "layouts": {str(rows): str(layout) for rows, layout in run.plan.layouts},
        "engine": run.plan.engine.value,
        "approximate": list(run.plan.approximate),
        "times": _times(run, done, [r.accounts for r in read]),
        "attempts": [_attempt(r) for r in read],
        "samples": [asdict(s) for s in run.samples],
        "unknown": _unknown(run, bool(attentions)),
    }


def _environment(run: Run) -> dict[str, Any]:
    """Versions and variables of the ranks, from the last attempt that left them."""
    versions = [e.meta.versions for a in run.attempts for e in a.events if e.meta.versions]
    last = next((a.environment for a in reversed(run.attempts) if a.environment), {})
    return {
        "versions": dict(versions[-1]) if versions else {},
        "drivers": sorted({n.driver for a in run.attempts for n in a.nodes if n.driver}),
        "profile": last.get("profile"),
        "variables": dict(last.get("environment", {})),
        **{key: dict(last.get(key, {})) for key in ("set", "taken_away", "kept")},
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
        refuse_other_work(rounded(report["work"]), baseline)
        found = measured(baseline, report["machine"]["hosts"])
        if found.kind == STORED:
            report["unknown"].append("the baseline is a stored report: its machine may differ in what no report shows")
        if baseline["version"] != report["version"]:
            report["unknown"].append(f"the baseline was made by version {baseline['version']}, this by another")
        report["unknown"] += other_engine(report, baseline, "here", "in the baseline")
    elif report["times"]["gpus"] == 1:
        report["efficiency_reason"] = "one rank, and no other run was named as the baseline"
        return
    else:
        first = accounts[0]
        assert first is not None, "there are times"
        found = predicted(report["run"], first.ranks)
    report["efficiency"] = asdict(efficiency(Times(**report["times"]), found))


def _add_rates(report: dict[str, Any], run: Run, read: Sequence[Read], prices: Prices) -> None:
    """What is of the last attempt alone: rates, links, energy, cost, serial share, advice."""
    names = ("rates", "links", "energy", "cost", "imbalance", "serial_share", "advice", "prediction")
    report |= dict.fromkeys(names) | {"links": [], "advice": [], "prediction_reason": NOT_PREDICTED}
    last = read[-1] if read else None
    if last is None or last.accounts is None:
        return
    accounts, plan = last.accounts, last.attempt.plan
    card = card_of(run.config)
    ran = as_it_ran(run.config, plan)
    known = None if isinstance(ran, str) else ran
    advice = advise(plan, accounts, last.findings, better_ways(known, plan) if known else None)
    done = {s.name for s in run.samples if s.files}
    videos = sum(v.name in done for v in plan.videos)
    gpus = report["attempts"][-1]["gpus"]
    report |= {
        "rates": compute_rates(plan, accounts, row_forwards([last.attempt.events]), card),
        "links": link_rates(plan, accounts, card),
        "energy": energy(gpus, accounts.wall_s, videos, prices.usd_per_kwh),
        "cost": cost(len(accounts.ranks), accounts.wall_s, videos, prices.usd_per_gpu_hour),
        "imbalance": imbalance(accounts),
        "advice": [asdict(a) for a in advice],
        "prediction": beside_measured(known, accounts) if known else None,
        "prediction_reason": ran if isinstance(ran, str) else None,
    }
    if (found := report["efficiency"]) and found["baseline"]["times"]["gpus"] == 1:
        report["serial_share"] = {
            scope: karp_flatt(found[scope]["speedup"], found[scope]["gpus"]) for scope in ("job", "denoise")
        }


def _attempt(read: Read) -> dict[str, Any]:
    attempt, accounts = read.attempt, read.accounts
    ranks = accounts.ranks if accounts else ()
    start = min((r.start_s for r in ranks), default=0.0)
    window = (start, start + accounts.wall_s) if accounts else (0.0, 0.0)
    hosts = {r.rank: r.host for r in ranks}
    failure = attempt.failure
    gpus = [use for node in read.nodes for use in gpu_uses(node, window, accounts)] if accounts else []
    return {
        "attempt": attempt.number,
        "status": attempt.status,
        "command": attempt.command,
        "started_epoch_s": min((e.meta.start_epoch_s for e in attempt.events), default=None),
        "wall_s": accounts.wall_s if accounts else None,
        "videos": [v.name for v in attempt.plan.videos],
        "placement": placement_text(attempt.plan.placement),
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
        "clock_error_s": accounts.clock_error_s if accounts else None,
        "findings": [asdict(f) for f in read.findings],
        "gpus": gpus,
        "hosts": [host_use(node, window) for node in read.nodes],
        "failure": {k: v for k, v in asdict(failure).items() if k != "traceback"} if failure else None,
        "unknown": [*_attempt_unknown(attempt, accounts), *of_whole_cards(gpus)],
    }


def _rank(r: RankAccount) -> dict[str, Any]:
    return {
        "rank": r.rank,
        "host": r.host,
        "device_name": r.device_name,
        "wall_s": r.wall_s,
        "parts": {part: r.parts[part] for part in PARTS},
        "communication_by_axis": dict(sorted(r.communication_by_axis.items())),
        "compute_by_kind": dict(r.compute_by_kind),
        "bytes_by_axis": dict(sorted(r.bytes_by_axis.items())),
        "device_uuid": r.device_uuid,
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
    if bad := sum(n.bad_lines for n in attempt.nodes):
        unknown.append(f"{bad} lines of samples cannot be read and are left out")
    if unseen := sorted({e.meta.host for e in attempt.events} - {node.host for node in attempt.nodes}):
        unknown.append(f"host {', '.join(unseen)} was not sampled: causes on its GPUs and CPUs cannot be shown")
    for node in attempt.nodes:
        if node.problem:
            unknown.append(f"the samples of host {node.host} end early: {node.problem}")
        if node.refused:
            said = ", ".join(f"{name} ({why})" for name, why in sorted(node.refused.items()))
            unknown.append(f"the driver of host {node.host} did not tell {said}")
    if drift := [e.meta.rank for e in attempt.events if e.end and abs(e.end.clock_drift_s) > DRIFT_S]:
        unknown.append(f"the device's clock ran away from the host's by over 1 ms on rank {', '.join(map(str, drift))}")
    return unknown


def _unknown(run: Run, attention: bool) -> list[str]:
    unknown = ["this is one run: how much the times spread is not known", *run.unknown]
    unknown.append("a rank's wall time begins when it begins to note it: what its process did before is not in it")
    if not attention and run.plan.attention == "auto":
        unknown.append("which attention kernel ran was not recorded")
    by_rank = {tuple(sorted((e.meta.versions or {}).items())) for a in run.attempts for e in a.events}
    if len(by_rank) > 1:
        unknown.append("not all ranks had the same versions of Python and packages")
    return unknown
