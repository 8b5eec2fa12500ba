"""What report.json says about one attempt: its ranks, what they lost, and its machines."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS, Accounts, RankAccount, account, waited_for
from opensora_launch.report.device_use import SampledNode, gpu_uses, host_use, nodes_of
from opensora_launch.report.diagnosis import Evidence, findings
from opensora_launch.report.losses import losses
from opensora_launch.report.prediction import placement_message
from opensora_launch.report.run_files import RecordedAttempt
from opensora_launch.report.steps import step_times
from opensora_launch.report.wording import Message, message

MOST_DRIFT_S = 1e-3


@dataclass(frozen=True)
class AttemptAnalysis:
    """An attempt with its accounts and nodes on one clock, its findings, and what its ranks lost."""

    attempt: RecordedAttempt
    accounts: Accounts | None
    nodes: tuple[SampledNode, ...]
    findings: tuple[Message, ...]
    losses: tuple[Message, ...]

    @classmethod
    def of(cls, attempt: RecordedAttempt) -> "AttemptAnalysis":
        if not attempt.events:
            return cls(attempt, None, (), (), ())
        accounts = account(attempt.events)
        nodes = nodes_of(attempt.nodes, accounts)
        evidence = Evidence(attempt.events, accounts, nodes, attempt.plan.model.mmdit.num_heads)
        found = findings(evidence)
        return cls(attempt, accounts, nodes, tuple(found), tuple(losses(evidence, found)))


def last_with_events(analyses: Sequence[AttemptAnalysis]) -> AttemptAnalysis | None:
    return next((a for a in reversed(analyses) if a.accounts), None)


def attempt_document(analysis: AttemptAnalysis) -> dict[str, Any]:
    """What report.json says about the attempt."""
    attempt, accounts = analysis.attempt, analysis.accounts
    ranks = accounts.ranks if accounts else ()
    start = min((r.start_s for r in ranks), default=0.0)
    window = (start, start + accounts.wall_s) if accounts else (0.0, 0.0)
    hosts = {r.rank: r.host for r in ranks}
    failure = attempt.failure
    gpus = [use for node in analysis.nodes for use in gpu_uses(node, window, accounts)] if accounts else []
    return {
        "attempt": attempt.number,
        "status": attempt.status,
        "command": attempt.command,
        "started_epoch_s": min((e.meta.start_epoch_s for e in attempt.events), default=None),
        "wall_s": accounts.wall_s if accounts else None,
        "videos": [v.name for v in attempt.plan.videos],
        "placement": placement_message(attempt.plan.placement),
        "ranks": [_rank(r) for r in ranks],
        "missing_ranks": list(attempt.missing_ranks),
        "steps": step_times(attempt.events, ranks),
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
        "findings": list(analysis.findings),
        "losses": list(analysis.losses),
        "gpus": gpus,
        "hosts": [host_use(node, window) for node in analysis.nodes],
        "failure": {k: v for k, v in asdict(failure).items() if k != "traceback"} if failure else None,
        "unknown": _attempt_unknown(attempt, accounts, gpus),
    }


def _rank(r: RankAccount) -> dict[str, Any]:
    as_they_are = (
        "rank", "host", "device_name", "device_uuid", "wall_s", "peak_memory_bytes", "set_aside_bytes", "complete",
    )  # fmt: skip
    return {
        **{name: getattr(r, name) for name in as_they_are},
        "parts": {part: r.parts[part] for part in WALL_PARTS},
        "communication_by_axis": dict(sorted(r.communication_by_axis.items())),
        "compute_by_kind": dict(r.compute_by_kind),
        "previews_s": r.previews_s,
        "bytes_by_axis": dict(sorted(r.bytes_by_axis.items())),
        "own_row_forwards": r.row_forwards,
    }


def _attempt_unknown(
    attempt: RecordedAttempt, accounts: Accounts | None, gpus: Sequence[Mapping[str, Any]]
) -> list[Message]:
    unknown = list(accounts.unknown) if accounts else []
    if attempt.missing_ranks:
        unknown.append(message("missing_ranks", ranks=list(attempt.missing_ranks)))
    if cut := [e.meta.rank for e in attempt.events if e.end is None]:
        unknown.append(message("cut_ranks", ranks=cut))
    if bad := sum(e.bad_lines for e in attempt.events):
        unknown.append(message("bad_events", lines=bad))
    if bad := sum(n.bad_lines for n in attempt.nodes):
        unknown.append(message("bad_samples", lines=bad))
    if unseen := sorted({e.meta.host for e in attempt.events} - {node.host for node in attempt.nodes}):
        unknown.append(message("unsampled_hosts", hosts=unseen))
    for node in attempt.nodes:
        if node.problem:
            unknown.append(message("samples_ended", host=node.host, why=node.problem))
        if node.refused:
            readings = [message("refused_reading", name=name, why=why) for name, why in sorted(node.refused.items())]
            unknown.append(message("refused_readings", host=node.host, readings=readings))
    if drift := [e.meta.rank for e in attempt.events if e.end and abs(e.end.clock_drift_s) > MOST_DRIFT_S]:
        unknown.append(message("clock_drift", ranks=drift))
    if readings := sorted({name for gpu in gpus for name in gpu["of_whole_card"]}):
        unknown.append(message("whole_card_readings", readings=readings))
    return unknown
