"""A run for other programs: trace.json for Perfetto, metrics.prom for Prometheus, CSV tables."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS, Accounts
from opensora_launch.report.device_use import SampledNode
from opensora_launch.report.timeline import counter_rate
from opensora_launch.report.wording import say
from opensora_launch.telemetry.events import RankEvents

US = 1e6
SAMPLED = (
    "util", "memory_util", "power_w", "energy_j", "memory_used_bytes", "sm_mhz", "memory_mhz", "temperature_c",
    "pcie_tx_bytes_per_s", "pcie_rx_bytes_per_s", "ecc_corrected", "ecc_uncorrected",
)  # fmt: skip
COUNTERS = {"nvlink_tx_bytes": "nvlink_tx_bytes_per_s", "nvlink_rx_bytes": "nvlink_rx_bytes_per_s"}


def trace(events: Sequence[RankEvents], accounts: Accounts, nodes: Sequence[SampledNode]) -> Iterator[str]:
    """Yield Chrome trace events as text: every span, step, kernel and collective as recorded, one process per rank.

    https://ui.perfetto.dev opens the file. Times are microseconds from the first rank's start.
    """
    zero = min(r.start_s for r in accounts.ranks)
    yield '{"displayTimeUnit": "ms", "traceEvents": [\n'
    first = True
    for event in (*_rank_events(events, accounts, zero), *_counters(nodes, zero)):
        yield ("" if first else ",\n") + json.dumps(event, ensure_ascii=False)
        first = False
    yield "\n]}\n"


def _rank_events(events: Sequence[RankEvents], accounts: Accounts, zero: float) -> Iterator[dict[str, Any]]:
    for e in events:
        rank, shift = e.meta.rank, accounts.shifts[e.meta.host] - zero
        yield {"ph": "M", "name": "process_name", "pid": rank, "args": {"name": f"rank {rank} on {e.meta.host}"}}
        for tid, name in enumerate(("phases", "steps", "blocks", "kernels", "collectives")):
            yield {"ph": "M", "name": "thread_name", "pid": rank, "tid": tid, "args": {"name": name}}
        found: list[tuple[int, str, float, float, dict[str, Any]]] = []
        found += [(0, s.phase, s.start_s, s.end_s, {"video": s.video}) for s in e.spans]
        found += [
            (1, f"step {s.step}", s.start_s, s.end_s,
             {"video": s.video, "rows": s.rows, "own_rows": s.own_rows, "layout": s.layout})
            for s in e.steps
        ]  # fmt: skip
        found += [(3 if w.part == "attention" else 2, w.part, w.start_s, w.end_s, {}) for w in e.work]
        found += [
            (4, c.axis, c.start_s, c.end_s, {"ranks": list(c.ranks), "sequence": c.sequence, "bytes": c.bytes})
            for c in e.collectives
        ]
        for tid, name, start, end, args in found:
            at, long = round((start + shift) * US, 1), round((end - start) * US, 1)
            yield {"ph": "X", "name": name, "pid": rank, "tid": tid, "ts": at, "dur": long, "args": args}


def _counters(nodes: Sequence[SampledNode], zero: float) -> Iterator[dict[str, Any]]:
    """The GPUs' samples as counters, and XIDs as instants."""
    for number, node in enumerate(nodes):
        pid = 100_000 + number
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"GPUs of {node.host}"}}
        for place, facts in enumerate(node.found.gpus):
            samples = [s["gpus"][place] if place < len(s["gpus"]) else {} for s in node.found.samples]
            for key, values in _sampled(samples, node.times).items():
                for time_s, value in zip(node.times, values, strict=True):
                    if value is not None:
                        at, name = round((time_s - zero) * US, 1), f"GPU {facts['index']} {key}"
                        yield {"ph": "C", "name": name, "pid": pid, "ts": at, "args": {key: value}}
        for x in node.found.xids:
            at = round((float(x["time_s"]) + node.shift_s - zero) * US, 1)
            yield {"ph": "i", "s": "g", "name": f"XID {x['xid']}", "pid": pid, "ts": at, "args": {"gpu": x["uuid"]}}


def _sampled(samples: Sequence[Mapping[str, Any]], times: Sequence[float]) -> dict[str, list[Any]]:
    """Values by name. Byte counters become rates, and lists their lengths."""
    found = {key: [s.get(key) for s in samples] for key in SAMPLED}
    found |= {name: list(counter_rate(samples, times, key)) for key, name in COUNTERS.items()}
    return found | {key: [len(s[key]) if key in s else None for s in samples] for key in ("throttled", "processes")}


def metrics(report: Mapping[str, Any]) -> str:
    """The report's numbers in Prometheus' text format, for node_exporter's textfile collector."""
    run = report["run"]
    found: dict[str, list[tuple[dict[str, Any], Any]]] = {}

    def add(name: str, value: Any, **labels: Any) -> None:
        found.setdefault(f"opensora_{name}", []).append(({"run": run, **labels}, value))

    add("videos_asked", report["videos"]["asked"])
    add("videos_done", report["videos"]["done"])
    for scope in ("job", "denoise"):
        if report["efficiency"]:
            baseline = report["efficiency"]["baseline"]["kind"]
            add("efficiency", report["efficiency"][scope]["efficiency"], scope=scope, baseline=baseline)
            add("speedup", report["efficiency"][scope]["speedup"], scope=scope, baseline=baseline)
    if report["rates"]:
        add("flops_per_second", report["rates"]["flops_per_s"])
        add("mfu", report["rates"]["mfu"])
    if report["energy"]:
        add("energy_joules_per_video", report["energy"]["joules_per_video"])
    for attempt in report["attempts"][-1:]:
        for name, value, labels in _of_attempt(attempt):
            add(name, value, **labels)
    lines = []
    for name, values in found.items():
        known = [(labels, value) for labels, value in values if value is not None]
        lines += [f"# TYPE {name} gauge"] if known else []
        lines += [f"{name}{{{_labels(labels)}}} {value!r}" for labels, value in known]
    return "\n".join(lines) + "\n"


Metric = tuple[str, Any, dict[str, Any]]  # name, value, labels


def _of_attempt(attempt: Mapping[str, Any]) -> Iterator[Metric]:
    yield "wall_seconds", attempt["wall_s"], {}
    for r in attempt["ranks"]:
        who = {"rank": r["rank"], "host": r["host"]}
        yield "rank_peak_memory_bytes", r["peak_memory_bytes"], who
        yield from (("rank_seconds", r["parts"][part], who | {"part": part}) for part in WALL_PARTS)
    for kind, count in sorted(Counter(f["code"] for f in attempt["findings"]).items()):
        yield "findings", count, {"kind": kind}
    for gpu in attempt["gpus"]:
        yield from _of_gpu(gpu)


def _of_gpu(gpu: Mapping[str, Any]) -> Iterator[Metric]:
    where = {"gpu": gpu["index"], "uuid": gpu["uuid"], "host": gpu["host"]}
    yield "gpu_power_watts_mean", gpu["power_mean_w"], where
    yield "gpu_memory_peak_bytes", gpu["memory_peak_bytes"], where
    yield "gpu_temperature_celsius_max", gpu["temperature_max_c"], where
    yield "gpu_ecc_uncorrected", gpu["ecc_uncorrected"], where
    yield "gpu_xids", len(gpu["xids"]), where
    for way in ("tx", "rx"):
        yield "gpu_nvlink_bytes", gpu[f"nvlink_{way}_bytes"], where | {"way": way}
        yield "gpu_pcie_bytes_per_second", gpu[f"pcie_{way}_bytes_per_s"], where | {"way": way}


def _labels(labels: Mapping[str, Any]) -> str:
    escaped = {k: str(v).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in labels.items()}
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())


def ranks_csv(report: Mapping[str, Any]) -> str:
    """One line per rank and attempt: seconds by part, compute by kind, communication by axis."""
    ranks = [(a["attempt"], r) for a in report["attempts"] for r in a["ranks"]]
    kinds = sorted({kind for _, r in ranks for kind in r["compute_by_kind"]})
    axes = sorted({axis for _, r in ranks for axis in r["communication_by_axis"]})
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write(
        ["attempt", "rank", "host", "device", "wall_s", *(f"{part}_s" for part in WALL_PARTS),
         *(f"compute_{kind}_s" for kind in kinds), *(f"communication_{axis}_s" for axis in axes),
         "own_row_forwards", "peak_memory_bytes", "complete"]
    )  # fmt: skip
    for number, r in ranks:
        write(
            [number, r["rank"], r["host"], r["device_name"], r["wall_s"], *(r["parts"][part] for part in WALL_PARTS),
             *(r["compute_by_kind"].get(kind, "") for kind in kinds),
             *(r["communication_by_axis"].get(axis, "") for axis in axes),
             r["own_row_forwards"], r["peak_memory_bytes"], r["complete"]]
        )  # fmt: skip
    return out.getvalue()


def sweep_csv(data: Mapping[str, Any]) -> str:
    """One line per point of a sweep's table; unknown values are empty."""
    names = ["name", "gpus", "layout", "seconds", "low", "high", "repeats", "speedup", "efficiency", "karp_flatt"]
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n").writerow
    write([*names, "other_work", "source"])
    for entry in data["table"]:
        write([*(entry[name] for name in names), "; ".join(map(say, entry["other_work"])), entry["source"]])
    return out.getvalue()
