"""Several runs, or published figures, as one report: speed-up, efficiency and serial share per count of GPUs."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from opensora_launch.report.efficiency import Scalar, differences
from opensora_launch.report.rates import amdahl, karp_flatt
from opensora_launch.report.wording import Message, message

SWEEP_SCHEMA = 4  # 3 has texts where 4 has messages
LEAST_COUNTS = 2  # of GPUs, to draw a line
NOISE = 0.005  # of an efficiency
GROWS = ("videos", "row_forwards")  # with the GPUs, in weak scaling
MOST_LINES = 8  # that can be told apart in a chart; the table has all


@dataclass(frozen=True)
class SweepPoint:
    """One count of GPUs in a series: the seconds of each repeat, the `layout`, and the work that each repeat did."""

    series: str
    gpus: int
    seconds: tuple[float, ...]
    layout: str | None
    source: str
    href: str | None = None
    works: tuple[Mapping[str, Scalar], ...] = ()


def sweep_report(
    title: str, points: Sequence[SweepPoint], *, version: str, weak: bool = False, **more: Any
) -> dict[str, Any]:
    """What the page and report.json say. The baseline of a series is its smallest count of GPUs.

    `weak`: work grows with the GPUs, so efficiency is t_base / t_n. Several layouts of one count are all in the table;
    the fastest makes the line. A point that did other work than the baseline has no efficiency and is in no line and no
    fit. `more`: kind, unit, device, command, unknown, peers (lines to draw too). `explained` is for bench_report.py.
    """
    kind, unit = more.get("kind", "sweep"), more.get("unit", "GPU")
    own = "published" if kind == "published" else "measured"
    series: dict[str, list[SweepPoint]] = defaultdict(list)
    for point in points:
        series[point.series].append(point)
    bases = {name: min(found, key=_smallest) for name, found in series.items()}
    table = [entry for name, found in series.items() for entry in _entries(found, bases[name], weak)]
    best = {name: _best(name, table) for name in series}
    lines = [
        {"name": name, "kind": own, "points": [_drawn(entry) | {"kind": own} for entry in found]}
        for name, found in best.items()
    ]
    times = {name: [(e["gpus"], e["seconds"]) for e in found] for name, found in best.items() if not weak}
    return {
        "schema": SWEEP_SCHEMA,
        "kind": kind,
        "unit": unit,
        "title": title,
        "version": version,
        "scaling": "weak" if weak else "strong",
        "device": more.get("device", ""),
        "command": more.get("command"),
        "baselines": [
            {"name": name, "kind": own, "gpus": p.gpus, "seconds": median(p.seconds), "source": p.source}
            for name, p in bases.items()
        ],
        "table": table,
        "curve": [line for line in lines if len(line["points"]) >= LEAST_COUNTS][:MOST_LINES] + more.get("peers", []),
        "amdahl": [{"name": name, **fit} for name, found in times.items() if (fit := amdahl(found))],
        "explained": [],
        "unknown": [*_other_work(table, bases, weak, unit), *_faults(table, kind, unit), *more.get("unknown", ())],
    }


def _smallest(point: SweepPoint) -> tuple[int, float]:
    return point.gpus, median(point.seconds)


def _entries(points: Sequence[SweepPoint], base: SweepPoint, weak: bool) -> list[dict[str, Any]]:
    t_base, sound = median(base.seconds), not _unlike(base, base, weak)
    entries = []
    for p in sorted(points, key=_smallest):
        t, unlike = median(p.seconds), _unlike(p, base, weak)
        efficiency = t_base / t if weak else t_base * base.gpus / (t * p.gpus)
        speedup, comparable = efficiency * p.gpus, sound and not unlike
        several = len(p.seconds) > 1
        entries.append(
            {
                "name": p.series,
                "gpus": p.gpus,
                "layout": p.layout,
                "seconds": t,
                "low": min(p.seconds) if several else None,
                "high": max(p.seconds) if several else None,
                "repeats": len(p.seconds) if several else None,
                "speedup": speedup if comparable else None,
                "efficiency": efficiency if comparable else None,
                "karp_flatt": karp_flatt(speedup, p.gpus) if comparable and base.gpus == 1 and not weak else None,
                "other_work": unlike,
                "source": p.source,
                "href": p.href,
                "work": _together(p.works) if p.works else None,
            }
        )
    return entries


def _unlike(point: SweepPoint, base: SweepPoint, weak: bool) -> list[Message]:
    """What any repeat of a point did differently from the baseline's first repeat."""
    skip = GROWS if weak else ()
    all_runs = [{k: v for k, v in work.items() if k not in skip} for work in (*base.works[:1], *point.works)]
    found = [line for work in all_runs[1:] for line in differences(work, all_runs[0])]
    return [line for n, line in enumerate(found) if line not in found[:n]]


def _together(works: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """What all repeats did; where they differ, as "12 or 50"."""
    found = {key: list(dict.fromkeys(work.get(key) for work in works)) for key in works[0]}
    return {key: values[0] if len(values) == 1 else " or ".join(map(str, values)) for key, values in found.items()}


def _other_work(
    table: Sequence[Mapping[str, Any]], bases: Mapping[str, SweepPoint], weak: bool, unit: str
) -> list[Message]:
    """Why points have no efficiency."""
    lines = [
        message("other_work", name=e["name"], size=size(e["gpus"], unit), difference=difference)
        for e in table
        for difference in e["other_work"]
    ]
    mixed = [name for name, base in bases.items() if _unlike(base, base, weak)]
    return lines + [message("mixed_baseline", name=name) for name in mixed]


def device_unit(device: str) -> str:
    return "GPU" if device == "cuda" else "CPU rank"


def size(gpus: int, unit: str) -> Message:
    """A count of "GPU" or "CPU rank"."""
    return message("gpus" if unit == "GPU" else "cpu_ranks", count=gpus)


def _faults(table: Sequence[Mapping[str, Any]], kind: str, unit: str) -> list[Message]:
    """Efficiencies above 1: measured ones are wrong until shown otherwise, published ones have a slow baseline."""
    return [
        message(
            "above_one_published" if kind == "published" else "above_one_measured",
            name=e["name"],
            size=size(e["gpus"], unit),
            efficiency=e["efficiency"],
        )
        for e in table
        if e["efficiency"] is not None and e["efficiency"] > 1 + NOISE
    ]


def _best(name: str, table: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The fastest layout of each count that did the baseline's work."""
    mine = [e for e in table if e["name"] == name and e["efficiency"] is not None]
    counts = sorted({e["gpus"] for e in mine})
    return [min((e for e in mine if e["gpus"] == n), key=lambda e: float(e["seconds"])) for n in counts]


def _drawn(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a line. `low` and `high` are speed-up and efficiency of its slowest and fastest repeats.

    The baseline stays its median.
    """
    point = {key: entry[key] for key in ("gpus", "seconds", "speedup", "efficiency")}
    if entry["low"] is not None:
        for end, seconds in (("low", entry["high"]), ("high", entry["low"])):
            point[end] = {key: entry[key] * entry["seconds"] / seconds for key in ("speedup", "efficiency")}
    return point
