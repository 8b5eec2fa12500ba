"""Several runs, or published figures, as one report: speed-up, efficiency and serial share of each count of GPUs."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.report.peers import peer_lines
from opensora_launch.report.rates import amdahl, karp_flatt, karp_flatt_text
from opensora_launch.report.words import md_table

SCHEMA = 2  # of a sweep's report.json
LEAST_COUNTS = 2  # of GPUs, to draw a line
NOISE = 0.005  # of an efficiency
OFFLOAD = re.compile(r"offload(_model)? True|cpu offload", re.IGNORECASE)  # as its row says
MOST_LINES = 8  # that can be told apart in a chart; the table has all


@dataclass(frozen=True)
class Point:
    """One count of GPUs of one series: the seconds of each repeat. `layout` is what it ran in, `work` what it did."""

    series: str
    gpus: int
    seconds: tuple[float, ...]
    layout: str | None
    source: str
    href: str | None = None
    work: Mapping[str, Any] | None = None


def sweep(title: str, points: Sequence[Point], *, version: str, weak: bool = False, **more: Any) -> dict[str, Any]:
    """What the page and sweep.json say. The baseline of a series is its smallest count of GPUs.

    `weak`: work grows with the GPUs, so efficiency is t_base / t_n. Layouts of one count stand beside each other in
    the table; the fastest makes the line. `more`: kind, unit, device, command, unknown, peers.
    """
    series: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        series[point.series].append(point)
    rows = [row for found in series.values() for row in _rows(found, weak)]
    lines = [_line(name, rows, more.get("kind", "sweep")) for name in series]
    fits = []
    for name in series if not weak else ():
        best = [(r["gpus"], r["seconds"]) for r in _best(name, rows)]
        if fit := amdahl(best):
            fits.append({"name": name, **fit})
    peers = [line | {"kind": "published"} for line in peer_lines()] if more.get("peers") else []
    return {
        "schema": SCHEMA,
        "kind": more.get("kind", "sweep"),
        "unit": more.get("unit", "GPU"),
        "title": title,
        "version": version,
        "scaling": "weak" if weak else "strong",
        "device": more.get("device", ""),
        "command": more.get("command"),
        "table": rows,
        "curve": [line for line in lines if len(line["points"]) >= LEAST_COUNTS][:MOST_LINES] + peers,
        "amdahl": fits,
        "unknown": [*_faults(rows, more.get("kind", "sweep"), more.get("unit", "GPU")), *more.get("unknown", ())],
    }


def _rows(points: Sequence[Point], weak: bool) -> list[dict[str, Any]]:
    base = min(points, key=lambda p: (p.gpus, median(p.seconds)))
    t_base = median(base.seconds)
    rows = []
    for p in sorted(points, key=lambda p: (p.gpus, median(p.seconds))):
        t = median(p.seconds)
        efficiency = t_base / t if weak else t_base * base.gpus / (t * p.gpus)
        speedup = efficiency * p.gpus
        several = len(p.seconds) > 1
        rows.append(
            {
                "name": p.series,
                "gpus": p.gpus,
                "layout": p.layout,
                "seconds": t,
                "low": min(p.seconds) if several else None,
                "high": max(p.seconds) if several else None,
                "repeats": len(p.seconds) if several else None,
                "speedup": speedup,
                "efficiency": efficiency,
                "karp_flatt": karp_flatt(speedup, p.gpus) if base.gpus == 1 and not weak else None,
                "source": p.source,
                "href": p.href,
                "work": None if p.work is None else dict(p.work),
            }
        )
    return rows


def _faults(rows: Sequence[Mapping[str, Any]], kind: str, unit: str) -> list[str]:
    """Efficiencies above 1: ours are wrong until shown otherwise, others' have a baseline that was slowed down."""
    of_ours = "is a fault of the measurement until shown otherwise"
    of_theirs = "as published: its baseline was slower than it need be"
    return [
        f"{r['name']} on {r['gpus']} {unit}{'s' * (r['gpus'] != 1)}: an efficiency of {r['efficiency']:.3f} "
        f"{of_theirs if kind == 'published' else of_ours}"
        for r in rows
        if r["efficiency"] > 1 + NOISE
    ]


def _best(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The fastest layout of each count."""
    counts = sorted({r["gpus"] for r in rows if r["name"] == name})
    return [
        min((r for r in rows if (r["name"], r["gpus"]) == (name, n)), key=lambda r: float(r["seconds"])) for n in counts
    ]


def _line(name: str, rows: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    own = "published" if kind == "published" else "measured"
    return {"name": name, "kind": own, "points": [_drawn(row) | {"kind": own} for row in _best(name, rows)]}


def _drawn(row: Mapping[str, Any]) -> dict[str, Any]:
    """A point of a line. `low` and `high`: what its slowest and fastest repeats are, of its speed-up and efficiency;
    the baseline stays its median.
    """
    point = {key: row[key] for key in ("gpus", "seconds", "speedup", "efficiency")}
    if row["low"] is not None:
        for end, seconds in (("low", row["high"]), ("high", row["low"])):
            point[end] = {key: row[key] * row["seconds"] / seconds for key in ("speedup", "efficiency")}
    return point


def sweep_markdown(data: Mapping[str, Any]) -> str:
    """The same in words."""
    kind = "Published figures, not measured here." if data["kind"] == "published" else ""
    rows = [
        [
            r["name"],
            str(r["gpus"]),
            r["layout"] or "",
            f"{r['seconds']:.2f}",
            "" if r["low"] is None else f"{r['low']:.2f} to {r['high']:.2f}",
            f"{r['speedup']:.2f}",
            f"{r['efficiency']:.1%}",
            karp_flatt_text(r["karp_flatt"]),
            r["source"],
        ]
        for r in data["table"]
    ]
    head = [
        "name",
        f"{data['unit']}s",
        "layout",
        "median s",
        "range s",
        "speed-up",
        "efficiency",
        "Karp-Flatt",
        "source",
    ]
    blocks = [f"# {data['title']}", kind, md_table(head, rows, (0, 2, 8))]
    blocks += [_amdahl_line(fit) for fit in data["amdahl"]]
    if data["command"]:
        blocks.append(f"```\n{data['command']}\n```")
    if data["unknown"]:
        blocks += ["## Weaker than it looks, or not known", "\n".join(f"- {line}" for line in data["unknown"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _amdahl_line(fit: Mapping[str, Any]) -> str:
    if not fit["parallel_s"]:
        return f"{fit['name']}: no speed-up was seen: nothing of the {fit['serial_s']:.2f} s is shared (Amdahl)."
    return (
        f"{fit['name']}: {fit['serial_s']:.2f} s serial and {fit['parallel_s']:.2f} s shared fit all counts best, so "
        f"{fit['serial_share']:.1%} of the work is serial (Amdahl)."
    )


def published(path: Path) -> tuple[list[Point], list[str]]:
    """Points of a file of published rows (docs/benchmarks): end-to-end seconds that can be compared, by table; and
    what is weaker than it looks. A table whose cells all stand in other tables is a copy, and left out. UserError if it
    is no such file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        usable = [r for r in rows if r["usable"] and r["seconds"] and r["kind"] == "end_to_end" and not r["lossy"]]
        tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in usable:
            tables[f"{row['table']}{' compiled' if row['compiled'] else ''}"].append(row)
        for name in _copies(tables):
            del tables[name]
        kept = {name: found for name, found in tables.items() if len({r["n_gpus"] for r in found}) >= LEAST_COUNTS}
        points = [
            Point(name, r["n_gpus"], (float(r["seconds"]),), _degrees(r["layout"]), r["source"])
            for name, found in kept.items()
            for r in found
        ]
        return points, _with_offload(kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is no file of published figures: {type(error).__name__}: {error}") from error


def _copies(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Tables that only repeat cells of others; of two that repeat each other the first goes."""
    cells = {
        name: {(r["model"], r["n_gpus"], r["steps"], float(r["seconds"])) for r in found}
        for name, found in tables.items()
    }
    copies: list[str] = []
    for name, mine in cells.items():
        others = set[tuple[Any, ...]]().union(*(c for n, c in cells.items() if n != name and n not in copies))
        copies += [name] if mine <= others else []
    return copies


def _with_offload(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A baseline that keeps weights in host memory is slow, so all that is measured against it looks good."""
    offloaded = {
        name: {r["n_gpus"] for r in found if OFFLOAD.search(f"{r['config']} {r['notes']}")}
        for name, found in tables.items()
    }
    everywhere = [name for name, found in tables.items() if {r["n_gpus"] for r in found} == offloaded[name]]
    some = [name for name in tables if offloaded[name] and name not in everywhere]
    lines = [f"with offload on the baseline alone, which flatters the efficiencies: {', '.join(some)}"] if some else []
    return lines + ([f"with offload on every count: {', '.join(everywhere)}"] if everywhere else [])


def _degrees(layout: Mapping[str, int] | None) -> str | None:
    if layout is None:
        return None
    return " ".join(f"{axis}{degree}" for axis, degree in layout.items() if degree > 1) or "one GPU"
