"""What the page draws over time: each rank's pieces and the nodes' samples, as short lists, from the start."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from opensora_launch.report.accounting import Accounts
from opensora_launch.report.device_use import SampledNode
from opensora_launch.report.rank_pieces import rank_pieces
from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.events import RankEvents
from opensora_launch.telemetry.samples import gpu_readings, rank_readings

MOST_POINTS = 600  # per line
MS = 3  # digits of seconds


def timeline(accounts: Accounts, nodes: Sequence[SampledNode], events: Sequence[RankEvents] = ()) -> dict[str, Any]:
    """Return `ranks` (rank_pieces), `lines` of values with unit and maximum, and `marks`: moments such as XIDs."""
    zero = min(r.start_s for r in accounts.ranks)
    of_rank = {e.meta.rank: e for e in events}
    found = [rank_pieces(r, of_rank.get(r.rank), zero) for r in accounts.ranks]
    return {
        "wall_s": accounts.wall_s,
        "ranks": [drawn for drawn, _ in found],
        "coarse_s": max(bin_s for _, bin_s in found),
        "lines": _lines(nodes, zero),
        "marks": _marks(nodes, zero),
    }


def _lines(nodes: Sequence[SampledNode], zero: float) -> list[dict[str, Any]]:
    several = len(nodes) > 1
    lines: list[dict[str, Any]] = []
    for node in nodes:
        host = node.host if several else None
        times = [t - zero for t in node.times]
        samples = node.found.samples
        for place, facts in enumerate(node.found.gpus):
            name = message("gpu_name", index=facts["index"], host=host)
            lines += _gpu_lines(name, facts, gpu_readings(samples, place), times)
        busy = cpu_shares([s["host"] for s in samples])
        lines.append(_line("cpu_share", message("cpu_name", host=host), "%", 1.0, times, busy))
        for rank in node.ranks:
            name, found = message("rank_name", rank=rank), rank_readings(samples, rank)
            lines.append(_line("ran_share", name, "%", 1.0, times, counter_rate(found, times, "ran_s")))
            lines.append(_line("rank_memory_bytes", name, "GiB", None, times, _values(found, "memory_bytes")))
    return [line for line in lines if line["points"]]


def _gpu_lines(
    name: Message, facts: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], times: Sequence[float]
) -> list[dict[str, Any]]:
    """Lines of everything that is sampled of a GPU. Faults have a line only where there were any."""
    lines = []
    for key, unit, most in (
        ("util", "%", 1.0),
        ("power_w", "W", facts.get("power_limit_w")),
        ("memory_used_bytes", "GiB", facts.get("memory_bytes")),
        ("sm_mhz", "MHz", facts.get("sm_mhz_max")),
        ("temperature_c", "°C", None),
        ("pcie_tx_bytes_per_s", "GB/s", None),
        ("pcie_rx_bytes_per_s", "GB/s", None),
    ):
        lines.append(_line(key, name, unit, most, times, _values(samples, key)))
    for key in ("nvlink_tx_bytes", "nvlink_rx_bytes"):
        lines.append(_line(key, name, "GB/s", None, times, counter_rate(samples, times, key)))
    errors = [_values(samples, key) for key in ("ecc_corrected", "ecc_uncorrected")]
    for key, usual, values in (
        ("throttle_reasons", 0, _counts(samples, "throttled")),
        ("ecc_errors", 0, [_grown(both, errors) for both in zip(*errors, strict=True)]),
        ("processes", 1, _counts(samples, "processes")),
    ):
        if any(v is not None and v > usual for v in values):
            lines.append(_line(key, name, "", None, times, values))
    return lines


def _grown(now: Sequence[float | None], all_of: Sequence[Sequence[float | None]]) -> float | None:
    """Errors of both kinds since the first sample that has them."""
    firsts = [next((v for v in values if v is not None), None) for values in all_of]
    gains = [v - first for v, first in zip(now, firsts, strict=True) if v is not None and first is not None]
    return sum(gains) if gains else None


def _marks(nodes: Sequence[SampledNode], zero: float) -> list[Message]:
    """XIDs, with the GPU that reported them."""
    found = []
    for node in nodes:
        names = {g["uuid"]: message("gpu_name", index=g["index"], host=node.host) for g in node.found.gpus}
        for x in node.found.xids:
            at = round(float(x["time_s"]) + node.shift_s - zero, MS)
            found.append(message("mark_xid", time_s=at, gpu=names.get(x["uuid"], x["uuid"]), xid=x["xid"]))
    return sorted(found, key=lambda mark: mark["time_s"])


def _values(samples: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [None if (value := s.get(key)) is None else float(value) for s in samples]


def _counts(samples: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    return [float(len(s[key])) if key in s else None for s in samples]


def counter_rate(samples: Sequence[Mapping[str, Any]], times: Sequence[float], key: str) -> list[float | None]:
    """How fast a counter grew since the previous sample, per second."""
    return _slope([s.get(key) for s in samples], times)


def cpu_shares(hosts: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The share of all CPUs of a host that was busy since the previous sample."""
    return _slope([s.get("cpu_busy_s") for s in hosts], [s.get("cpu_all_s") for s in hosts])


def _slope(values: Sequence[float | None], along: Sequence[float | None]) -> list[float | None]:
    found: list[float | None] = [None]
    for (then, at_then), (now, at_now) in pairwise(zip(values, along, strict=True)):
        if now is None or then is None or at_now is None or at_then is None or at_now <= at_then:
            found.append(None)
        else:
            found.append((now - then) / (at_now - at_then))
    return found


def _line(
    kind: str, name: Message, unit: str, most: Any, times: Sequence[float], values: Sequence[float | None]
) -> dict[str, Any]:
    points = [(t, v) for t, v in zip(times, values, strict=True) if v is not None]
    every = -(-len(points) // MOST_POINTS) or 1
    scale = {"GiB": 2**30, "GB/s": 1e9}.get(unit, 1)
    digits = 3 if unit in ("%", "GiB", "GB/s") else 0
    return {
        "kind": kind,
        "name": name,
        "unit": unit,
        "most": most / scale if most else None,
        "points": [[round(t, MS), round(v / scale, digits)] for t, v in points[::every]],
    }
