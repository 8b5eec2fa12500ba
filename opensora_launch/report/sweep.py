"""Several runs, or published figures, as one report: speed-up, efficiency and serial share of each count of GPUs."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.report.markdown import md_table
from opensora_launch.report.peers import peer_lines
from opensora_launch.report.rates import amdahl, karp_flatt, karp_flatt_text

SCHEMA = 2  # of a sweep's report.json
LEAST_COUNTS = 2  # of GPUs, to draw a line
NOISE = 0.005  # of an efficiency
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
    return [
        f"{r['name']} on {r['gpus']} {unit}{'s' * (r['gpus'] != 1)}: an efficiency of {r['efficiency']:.3f} is a fault "
        "of the measurement until shown otherwise"
        for r in rows
        if r["efficiency"] > 1 + NOISE and kind != "published"
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


def published(path: Path) -> list[Point]:
    """Points of a file of published rows (docs/benchmarks): end-to-end seconds that can be compared, by table.

    Of equal tables (the same seconds for the same model) one is kept. UserError if it is no such file.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        usable = [r for r in rows if r["usable"] and r["seconds"] and r["kind"] == "end_to_end" and not r["lossy"]]
        tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in usable:
            tables[f"{row['table']}{' compiled' if row['compiled'] else ''}"].append(row)
        points: list[Point] = []
        seen: set[tuple[str, tuple[tuple[int, float], ...]]] = set()
        for name, found in tables.items():
            key = (found[0]["model"], tuple(sorted((r["n_gpus"], float(r["seconds"])) for r in found)))
            if len({r["n_gpus"] for r in found}) < LEAST_COUNTS or key in seen:
                continue
            seen.add(key)
            points += [
                Point(name, r["n_gpus"], (float(r["seconds"]),), _degrees(r["layout"]), r["source"]) for r in found
            ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is no file of published figures: {type(error).__name__}: {error}") from error
    return points


def _degrees(layout: Mapping[str, int] | None) -> str | None:
    if layout is None:
        return None
    return " ".join(f"{axis}{degree}" for axis, degree in layout.items() if degree > 1) or "one GPU"
