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
from opensora_launch.report.efficiency import Scalar, differences
from opensora_launch.report.peers import peer_lines
from opensora_launch.report.rates import amdahl, karp_flatt, karp_flatt_text
from opensora_launch.report.words import md_table

SCHEMA = 3  # of a sweep's report.json
LEAST_COUNTS = 2  # of GPUs, to draw a line
NOISE = 0.005  # of an efficiency
GROWS = ("videos", "row_forwards")  # with the GPUs, in weak scaling
OFFLOAD = re.compile(r"offload(_model)? True|cpu offload", re.IGNORECASE)  # as its row says
MOST_LINES = 8  # that can be told apart in a chart; the table has all


@dataclass(frozen=True)
class Point:
    """A count of GPUs of one series: the seconds of each repeat; `layout` is what it ran in, `works` what each did."""

    series: str
    gpus: int
    seconds: tuple[float, ...]
    layout: str | None
    source: str
    href: str | None = None
    works: tuple[Mapping[str, Scalar], ...] = ()


def sweep(title: str, points: Sequence[Point], *, version: str, weak: bool = False, **more: Any) -> dict[str, Any]:
    """What the page and report.json say. The baseline of a series is its smallest count of GPUs.

    `weak`: work grows with the GPUs, so efficiency is t_base / t_n. Layouts of one count stand beside each other in
    the table; the fastest makes the line. A point that did other work than the baseline has no efficiency and is in no
    line and no fit. `more`: kind, unit, device, command, unknown, peers.
    """
    kind, unit = more.get("kind", "sweep"), more.get("unit", "GPU")
    own = "published" if kind == "published" else "measured"
    series: dict[str, list[Point]] = defaultdict(list)
    for point in points:
        series[point.series].append(point)
    bases = {name: min(found, key=_smallest) for name, found in series.items()}
    rows = [row for name, found in series.items() for row in _rows(found, bases[name], weak)]
    lines = [_line(name, rows, own) for name in series]
    fits = []
    for name in series if not weak else ():
        best = [(r["gpus"], r["seconds"]) for r in _best(name, rows)]
        if fit := amdahl(best):
            fits.append({"name": name, **fit})
    peers = [line | {"kind": "published"} for line in peer_lines()] if more.get("peers") else []
    return {
        "schema": SCHEMA,
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
        "table": rows,
        "curve": [line for line in lines if len(line["points"]) >= LEAST_COUNTS][:MOST_LINES] + peers,
        "amdahl": fits,
        "unknown": [*_other_work(rows, bases, weak, unit), *_faults(rows, kind, unit), *more.get("unknown", ())],
    }


def _smallest(point: Point) -> tuple[int, float]:
    return point.gpus, median(point.seconds)


def _rows(points: Sequence[Point], base: Point, weak: bool) -> list[dict[str, Any]]:
    t_base, sound = median(base.seconds), not _unlike(base, base, weak)
    rows = []
    for p in sorted(points, key=_smallest):
        t, unlike = median(p.seconds), _unlike(p, base, weak)
        efficiency = t_base / t if weak else t_base * base.gpus / (t * p.gpus)
        speedup, comparable = efficiency * p.gpus, sound and not unlike
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
                "speedup": speedup if comparable else None,
                "efficiency": efficiency if comparable else None,
                "karp_flatt": karp_flatt(speedup, p.gpus) if comparable and base.gpus == 1 and not weak else None,
                "other_work": unlike,
                "source": p.source,
                "href": p.href,
                "work": _together(p.works) if p.works else None,
            }
        )
    return rows


def _unlike(point: Point, base: Point, weak: bool) -> list[str]:
    """What any repeat of a point did otherwise than the baseline's first."""
    skip = GROWS if weak else ()
    all_runs = [{k: v for k, v in work.items() if k not in skip} for work in (*base.works[:1], *point.works)]
    return list(dict.fromkeys(line for work in all_runs[1:] for line in differences(work, all_runs[0])))


def _together(works: Sequence[Mapping[str, Scalar]]) -> dict[str, Scalar]:
    """What all repeats did; where they did not do the same, as "12 or 50"."""
    found = {key: list(dict.fromkeys(work.get(key) for work in works)) for key in works[0]}
    return {key: values[0] if len(values) == 1 else " or ".join(map(str, values)) for key, values in found.items()}


def _other_work(rows: Sequence[Mapping[str, Any]], bases: Mapping[str, Point], weak: bool, unit: str) -> list[str]:
    """Why points have no efficiency."""
    lines = [f"{r['name']} on {size(r['gpus'], unit)} did other work: {line}" for r in rows for line in r["other_work"]]
    mixed = [name for name, base in bases.items() if _unlike(base, base, weak)]
    return lines + [f"{name} has no efficiencies: the runs of its baseline did different work" for name in mixed]


def size(gpus: int, unit: str) -> str:
    """In words: "2 GPUs"."""
    return f"{gpus} {unit}{'s' * (gpus != 1)}"


def _faults(rows: Sequence[Mapping[str, Any]], kind: str, unit: str) -> list[str]:
    """Efficiencies above 1: ours are wrong until shown otherwise, others' have a baseline that was slowed down."""
    of_ours = "is a fault of the measurement until shown otherwise"
    of_theirs = "as published: its baseline was slower than it need be"
    return [
        f"{r['name']} on {size(r['gpus'], unit)}: an efficiency of {r['efficiency']:.3f} "
        f"{of_theirs if kind == 'published' else of_ours}"
        for r in rows
        if r["efficiency"] is not None and r["efficiency"] > 1 + NOISE
    ]


def _best(name: str, rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The fastest layout of each count that did the baseline's work."""
    mine = [r for r in rows if r["name"] == name and r["efficiency"] is not None]
    counts = sorted({r["gpus"] for r in mine})
    return [min((r for r in mine if r["gpus"] == n), key=lambda r: float(r["seconds"])) for n in counts]


def _line(name: str, rows: Sequence[Mapping[str, Any]], own: str) -> dict[str, Any]:
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
            "" if r["speedup"] is None else f"{r['speedup']:.2f}",
            efficiency_text(r),
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
    blocks += ["\n".join(f"- {baseline_text(base, data['unit'])}" for base in data["baselines"])]
    blocks += [_amdahl_line(fit) for fit in data["amdahl"]]
    if data["command"]:
        blocks.append(f"```\n{data['command']}\n```")
    if data["unknown"]:
        blocks += ["## Weaker than it looks, or not known", "\n".join(f"- {line}" for line in data["unknown"])]
    return "\n\n".join(block for block in blocks if block) + "\n"


def efficiency_text(row: Mapping[str, Any]) -> str:
    """In words: there is none where other work was done."""
    if row["efficiency"] is None:
        return "none: other work" if row["other_work"] else "none"
    return f"{row['efficiency']:.1%}"


def baseline_text(base: Mapping[str, Any], unit: str) -> str:
    """What a series is compared with, and how that is known."""
    how = "measured here, run" if base["kind"] == "measured" else "published,"
    what = f"{size(base['gpus'], unit)}, {base['seconds']:.2f} s"
    return f"{base['name']}: the baseline is {what}, {how} {base['source']}"


def _amdahl_line(fit: Mapping[str, Any]) -> str:
    if not fit["parallel_s"]:
        return f"{fit['name']}: no speed-up was seen: nothing of the {fit['serial_s']:.2f} s is shared (Amdahl)."
    return (
        f"{fit['name']}: {fit['serial_s']:.2f} s serial and {fit['parallel_s']:.2f} s shared fit its line best, so "
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
