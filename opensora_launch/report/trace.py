"""A run as trace.json for https://ui.perfetto.dev: Chrome trace events, in microseconds from the first rank's start.

One process per rank, with its phases, steps, blocks, kernels, collectives and readings, and one per host with readings.
Only what has events is there. An arrow leads from the rank that came last to a collective to each rank that waited.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import Accounts
from opensora_launch.report.device_use import SampledNode
from opensora_launch.report.timeline import counter_rate, cpu_shares
from opensora_launch.telemetry.events import Collective, RankEvents
from opensora_launch.telemetry.samples import gpu_readings, rank_readings

US = 1e6
THREADS = ("phases", "steps", "blocks", "kernels", "collectives")
SAMPLED = (
    "util", "memory_util", "power_w", "energy_j", "memory_used_bytes", "sm_mhz", "memory_mhz", "temperature_c",
    "pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s", "ecc_corrected", "ecc_uncorrected",
)  # fmt: skip
COUNTERS = {"nvlink_tx_bytes": "nvlink_tx_bytes_per_s", "nvlink_rx_bytes": "nvlink_rx_bytes_per_s"}
OF_RANKS = {"ran_s": "share of a core", "starved_s": "share of time without a core"}
HOST_PROCESS = 100_000  # the first process that is no rank

TraceEvent = dict[str, Any]
_Span = tuple[int, str, float, float, dict[str, Any]]  # thread, name, start, end, facts
_Arrivals = Mapping[tuple[tuple[int, ...], int], Mapping[int, float]]


def trace(events: Sequence[RankEvents], accounts: Accounts, nodes: Sequence[SampledNode]) -> str:
    """The file as text."""
    zero = min(r.start_s for r in accounts.ranks)
    found = (*_rank_events(events, accounts, zero), *_node_events(nodes, zero))
    lines = ",\n".join(json.dumps(event, ensure_ascii=False) for event in found)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _rank_events(events: Sequence[RankEvents], accounts: Accounts, zero: float) -> Iterator[TraceEvent]:
    arrivals: dict[tuple[tuple[int, ...], int], dict[int, float]] = defaultdict(dict)
    for e in events:
        for c in e.collectives:
            arrivals[c.ranks, c.sequence][e.meta.rank] = c.start_s + accounts.shifts[e.meta.host] - zero
    for e in events:
        rank, shift = e.meta.rank, accounts.shifts[e.meta.host] - zero
        yield _name("process", rank, 0, f"rank {rank} on {e.meta.host}")
        spans = list(_spans(e, shift, arrivals))
        for tid in sorted({span[0] for span in spans}):
            yield _name("thread", rank, tid, THREADS[tid])
        for tid, name, start, end, facts in spans:
            at, long = round(start * US, 1), round((end - start) * US, 1)
            yield {"ph": "X", "name": name, "pid": rank, "tid": tid, "ts": at, "dur": long, "args": facts}
    yield from _arrows(arrivals)


def _spans(e: RankEvents, shift: float, arrivals: _Arrivals) -> Iterator[_Span]:
    for s in e.spans:
        yield 0, s.phase, s.start_s + shift, s.end_s + shift, {"video": s.video}
    for step in e.steps:
        facts = {"video": step.video, "rows": step.rows, "own_rows": step.own_rows, "layout": step.layout}
        yield 1, f"step {step.step}", step.start_s + shift, step.end_s + shift, facts
    for w in e.work:
        yield 3 if w.part == "attention" else 2, w.part, w.start_s + shift, w.end_s + shift, {}
    for c in e.collectives:
        yield from _halves(c, shift, arrivals[c.ranks, c.sequence])


def _halves(c: Collective, shift: float, came: Mapping[int, float]) -> Iterator[_Span]:
    """The wait for the rank that comes last, if any, and the transfer."""
    begin, over = c.start_s + shift, c.end_s + shift
    last = max(came, key=lambda r: came[r])
    ready = min(max(came[last], begin), over)
    if ready > begin:
        yield 4, f"wait for rank {last}", begin, ready, {"axis": c.axis, "sequence": c.sequence}
    yield 4, c.axis, ready, over, {"ranks": list(c.ranks), "sequence": c.sequence, "bytes": c.bytes}


def _arrows(arrivals: _Arrivals) -> Iterator[TraceEvent]:
    """From the last rank's transfer to those of the ranks that waited for it. All of them begin at that moment."""
    number = 0
    for came in arrivals.values():
        last = max(came, key=lambda r: came[r])
        for rank in came:
            if rank != last:
                number += 1
                shared = {"name": "last to come", "cat": "collective", "id": number, "ts": round(came[last] * US, 1)}
                yield {"ph": "s", "pid": last, "tid": 4, **shared}
                yield {"ph": "f", "bp": "e", "pid": rank, "tid": 4, **shared}


def _node_events(nodes: Sequence[SampledNode], zero: float) -> Iterator[TraceEvent]:
    """Readings of GPUs and hosts, and XIDs, in a process per host; readings of ranks in the ranks' own."""
    for number, node in enumerate(nodes):
        pid = HOST_PROCESS + number
        hosts = [s["host"] for s in node.found.samples]
        available = [host.get("available_bytes") for host in hosts]
        counters = [
            *_gpu_counters(node, pid, zero),
            *_counter("share of all CPUs", "share", pid, node, zero, cpu_shares(hosts)),
            *_counter("available memory", "bytes", pid, node, zero, available),
        ]
        for x in node.found.xids:
            at = round((float(x["time_s"]) + node.shift_s - zero) * US, 1)
            mark = {"ph": "i", "s": "g", "name": f"XID {x['xid']}", "pid": pid, "ts": at}
            counters.append(mark | {"args": {"gpu": x["uuid"]}})
        if counters:
            yield _name("process", pid, 0, f"host {node.host}")
            yield from counters
        yield from _rank_counters(node, zero)


def _gpu_counters(node: SampledNode, pid: int, zero: float) -> Iterator[TraceEvent]:
    for place, facts in enumerate(node.found.gpus):
        samples = gpu_readings(node.found.samples, place)
        found = {key: [s.get(key) for s in samples] for key in SAMPLED}
        found |= {name: list(counter_rate(samples, node.times, key)) for key, name in COUNTERS.items()}
        found |= {key: [len(s[key]) if key in s else None for s in samples] for key in ("throttled", "processes")}
        for key, values in found.items():
            yield from _counter(f"GPU {facts['index']} {key}", key, pid, node, zero, values)


def _rank_counters(node: SampledNode, zero: float) -> Iterator[TraceEvent]:
    for rank in node.ranks:
        found = rank_readings(node.found.samples, rank)
        for key, name in OF_RANKS.items():
            yield from _counter(name, "share", rank, node, zero, counter_rate(found, node.times, key))
        yield from _counter("memory", "bytes", rank, node, zero, [r.get("memory_bytes") for r in found])


def _counter(
    name: str, key: str, pid: int, node: SampledNode, zero: float, values: Sequence[float | None]
) -> Iterator[TraceEvent]:
    for time_s, value in zip(node.times, values, strict=True):
        if value is not None:
            yield {"ph": "C", "name": name, "pid": pid, "ts": round((time_s - zero) * US, 1), "args": {key: value}}


def _name(of: str, pid: int, tid: int, name: str) -> TraceEvent:
    return {"ph": "M", "name": f"{of}_name", "pid": pid, "tid": tid, "args": {"name": name}}
