"""How GPUs, hosts and ranks' threads were used, from the nodes' samples: means, peaks and sums over a window of time.

Counters (energy, CPU time, page faults) are differences between the samples nearest to the window's ends.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from statistics import fmean, median
from typing import Any

from opensora_launch.report.accounting import Accounts
from opensora_launch.report.gpu_errors import xid_error
from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.samples import NodeSamples, bare_uuid, gpu_readings

Window = tuple[float, float]
FAULTS = "major_faults"
THREAD_COUNTERS = {"ran_s", "starved_s", FAULTS}
LEAST_SHARED = 0.5  # of the samples with another process
LEAST_THROTTLED = 0.2  # of the samples
HELD_DOWN = {"hardware_slowdown", "too_hot_driver", "too_hot_hardware", "power_brake"}  # heat, power, a fault


@dataclass(frozen=True)
class SampledNode:
    """One node's samples on the attempt's common clock."""

    found: NodeSamples
    times: tuple[float, ...]

    @property
    def host(self) -> str:
        return self.found.host

    @property
    def ranks(self) -> list[int]:
        return sorted({found["rank"] for sample in self.found.samples for found in sample["ranks"]})

    @property
    def shift_s(self) -> float:
        """What to add to a time in its file."""
        return self.times[0] - float(self.found.samples[0]["time_s"])

    def within(self, window: Window) -> Sequence[Mapping[str, Any]]:
        """The samples in a window, and the last one before it, where counters start."""
        first = max(0, bisect_right(self.times, window[0]) - 1)
        return self.found.samples[first : bisect_right(self.times, window[1]) + 1]

    @property
    def cpus(self) -> int | None:
        """How many CPUs the node has: the CPU time of all of them, idle or not, in a second."""
        every = _gain([s["host"] for s in self.found.samples], "cpu_all_s")
        return round(every / (self.times[-1] - self.times[0])) if every else None


@dataclass(frozen=True)
class RankUse:
    """A rank's main thread in a window: seconds on a CPU, or ready to run without one; page faults that read a disk."""

    window: Window
    ran_s: float
    starved_s: float
    major_faults: int


def nodes_of(found: Sequence[NodeSamples], accounts: Accounts) -> tuple[SampledNode, ...]:
    """Return the nodes whose clock is known, with times on the accounts' clock."""
    return tuple(
        SampledNode(n, tuple(s["time_s"] + accounts.shifts[n.host] for s in n.samples))
        for n in found
        if n.host in accounts.shifts and n.samples
    )


def rank_use(node: SampledNode, rank: int, window: Window) -> RankUse | None:
    """Count over the sampled part of a window, interpolating between samples.

    None where no part of it was sampled, or the kernel does not have these counters.
    """
    inside = zip(node.times, node.found.samples, strict=True)
    seen = [(now, r) for now, s in inside for r in s["ranks"] if r["rank"] == rank and r.keys() >= THREAD_COUNTERS]
    if len(seen) < 2:
        return None
    start, end = max(window[0], seen[0][0]), min(window[1], seen[-1][0])
    if end <= start:
        return None
    ran_s, starved_s, faults = (_at(seen, end, key) - _at(seen, start, key) for key in ("ran_s", "starved_s", FAULTS))
    return RankUse((start, end), ran_s, starved_s, round(faults))


def _at(seen: Sequence[tuple[float, Mapping[str, Any]]], now: float, key: str) -> float:
    """Interpolate a counter at a moment between the first and the last sample."""
    after = min(max(1, bisect_right([time_s for time_s, _ in seen], now)), len(seen) - 1)
    (then, first), (later, last) = seen[after - 1 : after + 1]
    share = (now - then) / (later - then) if later > then else 0.0
    return float(first[key] + share * (last[key] - first[key]))


def host_use(node: SampledNode, window: Window) -> dict[str, Any]:
    """CPU and memory use of a node; null where the kernel does not report it."""
    hosts = [s["host"] for s in node.within(window)]
    busy, cpu = _gain(hosts, "cpu_busy_s"), _gain(hosts, "cpu_all_s")
    return {
        "host": node.host,
        "cpu_share": busy / cpu if busy is not None and cpu else None,
        "memory_bytes": _over(hosts, "memory_bytes", itemgetter(-1)),
        "least_available_bytes": _over(hosts, "available_bytes", min),
        "memory_stall_s": _gain(hosts, "memory_stall_s"),
        "driver": node.found.driver,
        "no_gpus": node.found.no_gpus,
        "refused": dict(node.found.refused),
        "samples": len(hosts),
    }


def gpu_uses(node: SampledNode, window: Window, accounts: Accounts) -> list[dict[str, Any]]:
    """Use of each GPU that a rank computes on, or of all GPUs of the node where the ranks' GPUs are unknown.

    Empty where the ranks compute on CPUs.
    """
    here = [r for r in accounts.ranks if r.host == node.host and r.device != "cpu"]
    if not here:
        return []
    ranks: dict[str, list[int]] = {}
    for r in here:
        if r.device_uuid:
            ranks.setdefault(bare_uuid(r.device_uuid), []).append(r.rank)
    uses = {}
    for place, facts in enumerate(node.found.gpus):
        readings = gpu_readings(node.within(window), place)
        uses[facts["uuid"]] = _gpu_use(node, facts, readings, ranks.get(bare_uuid(facts["uuid"]), []))
    if not ranks:
        return list(uses.values())
    ours = [facts for facts in node.found.gpus if uses[facts["uuid"]]["ranks"]]
    return [_with_whole_card(uses[facts["uuid"]], uses.get(facts.get("mig_of", ""))) for facts in ours]


def _with_whole_card(use: dict[str, Any], card: Mapping[str, Any] | None) -> dict[str, Any]:
    """Add the readings that only the whole card gives to those of a MIG instance.

    Processes are left out: those of a card belong to all of its instances.
    """
    if card is None:
        return use
    lacking = [name for name in use.keys() - {"ranks", "others_share"} if use[name] in (None, {}, [])]
    given = {name: card[name] for name in sorted(lacking) if card[name] not in (None, {}, [])}
    return use | given | {"of_whole_card": list(given)}


def _gpu_use(
    node: SampledNode, facts: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], ranks: Sequence[int]
) -> dict[str, Any]:
    throttled = Counter(throttle_code(name) for s in samples for name in s.get("throttled", ()))
    sampled = sum("throttled" in s for s in samples)
    seen = [len(s["processes"]) for s in samples if "processes" in s]
    return {
        "host": node.host,
        "index": facts["index"],
        "uuid": facts["uuid"],
        "name": facts["name"],
        "ranks": list(ranks),
        "util_mean": _over(samples, "util", fmean),
        "memory_bytes": facts.get("memory_bytes"),
        "memory_peak_bytes": _over(samples, "memory_used_bytes", max),
        "power_mean_w": _over(samples, "power_w", fmean),
        "power_limit_w": facts.get("power_limit_w"),
        "energy_j": _gain(samples, "energy_j"),
        "sm_mhz_median": _over(samples, "sm_mhz", median),
        "sm_mhz_max": facts.get("sm_mhz_max"),
        "temperature_max_c": _over(samples, "temperature_c", max),
        "throttled": {reason: count / sampled for reason, count in throttled.most_common()},
        "nvlink_tx_bytes": _gain(samples, "nvlink_tx_bytes"),
        "nvlink_rx_bytes": _gain(samples, "nvlink_rx_bytes"),
        "pcie_tx_bytes_per_s": _over(samples, "pcie_tx_bytes_per_s", fmean),
        "pcie_rx_bytes_per_s": _over(samples, "pcie_rx_bytes_per_s", fmean),
        "ecc_corrected": _gain(samples, "ecc_corrected"),
        "ecc_uncorrected": _gain(samples, "ecc_uncorrected"),
        "others_share": sum(n > max(len(ranks), 1) for n in seen) / len(seen) if seen else None,
        "of_whole_card": [],
        "xids": sorted({x["xid"] for x in node.found.xids if x["uuid"] == facts["uuid"]}),
    }


def throttle_code(name: str) -> str:
    """The code of a throttle reason as the sampler names it: "too hot (driver)" is too_hot_driver."""
    return "_".join(re.findall(r"\w+", name.lower()))


def _values(samples: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(s[name]) for s in samples if s.get(name) is not None]


def _gain(samples: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """How much a counter grew."""
    found = _values(samples, name)
    return found[-1] - found[0] if len(found) > 1 else None


def _over(samples: Sequence[Mapping[str, Any]], name: str, fold: Callable[[list[float]], float]) -> float | None:
    found = _values(samples, name)
    return float(fold(found)) if found else None


def throttle_reasons(gpu: Mapping[str, Any]) -> list[Message]:
    """Why a GPU was throttled, the most frequent reason first."""
    return [message(why, share=share) for why, share in gpu["throttled"].items() if share >= LEAST_THROTTLED]


def gpu_findings(gpu: Mapping[str, Any]) -> list[Message]:
    """What is wrong with a GPU, whether or not a rank lost time by it, as findings (see diagnosis.py).

    A power cap is normal under full load, and locked clocks are the owner's choice.
    """
    found = []
    if reasons := [reason for reason in throttle_reasons(gpu) if reason["code"] in HELD_DOWN]:
        clocks = {"sm_mhz": gpu["sm_mhz_median"] or None, "sm_mhz_max": gpu["sm_mhz_max"]}
        found.append(message("throttled", reasons=reasons, **clocks, **_of_gpu(gpu, "throttled")))
    if (share := gpu["others_share"] or 0.0) >= LEAST_SHARED:
        found.append(message("shared_gpu", share=share, **_of_gpu(gpu, "others_share")))
    errors = [(xid_error(xid), "xids") for xid in gpu["xids"]]
    if count := gpu["ecc_uncorrected"]:
        errors.append((message("uncorrectable", errors=count), "ecc_uncorrected"))
    return found + [message("gpu_error", error=error, **_of_gpu(gpu, reading)) for error, reading in errors]


def _of_gpu(gpu: Mapping[str, Any], reading: str) -> dict[str, Any]:
    return {
        "ranks": list(gpu["ranks"]),
        "host": gpu["host"],
        "gpu": gpu["uuid"],
        "gpu_name": f"GPU {gpu['index']}",
        "whole_card": message("whole_card") if reading in gpu["of_whole_card"] else None,
        "seconds": None,
    }
