"""Published seconds of video models on several GPUs: lines to draw beside a run, and whole files as a report.

Nothing here was measured by this project; efficiency is recalculated from the seconds. Sources of PEERS: README of
hpcaitech/Open-Sora (2.0, 50 steps, 129 frames), README of Tencent-Hunyuan/HunyuanVideo (xDiT), README of
Wan-Video/Wan2.2. HunyuanVideo's two-GPU cell is left out: its README and xDiT's document differ in it, and the README's
number is in another table of xDiT's.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.report.sweep import LEAST_COUNTS, SweepPoint
from opensora_launch.report.wording import Message, message

OFFLOAD = re.compile(r"offload(_model)? True|cpu offload", re.IGNORECASE)  # in the notes of a cell


@dataclass(frozen=True)
class Peer:
    """Seconds by count of GPUs, the pixels of a frame, and what weakens the seconds."""

    name: str
    pixels: int
    seconds: dict[int, float]
    note: Message | None = None


PEERS = (
    Peer("Open-Sora 2.0, 768px, H100", 768 * 768, {1: 1656.0, 2: 863.0, 4: 466.0, 8: 276.0}),
    Peer("Open-Sora 2.0, 256px, H100", 256 * 256, {1: 60.0, 2: 40.0, 4: 34.0}, message("offload_all")),
    Peer("HunyuanVideo, 720p, H100", 1280 * 720, {1: 1904.08, 4: 514.08, 8: 337.58}, message("offload_maybe")),
    Peer("Wan2.2 A14B, 720p, H100", 1280 * 720, {1: 1041.5, 4: 288.7, 8: 155.1}, message("offload_one")),
)
MODELS = ("open_sora_v2",)  # of the size of the published ones
LIKE_PIXELS = 2.5  # at most this many times as many pixels in a frame, or as few


def peer_lines(work: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one line per table of the same kind of work: name, kind, note, and points.

    A point is (gpus, seconds, speedup, efficiency). `work` is a report's: videos of a model of this size, on GPUs, with
    frames of about as many pixels. A small model on CPU ranks scales for other reasons, so it has none.
    """
    if work["device"] != "cuda" or work["model.name"] not in MODELS:
        return []
    pixels = work["height_px"] * work["width_px"]
    like = [p for p in PEERS if 1 / LIKE_PIXELS <= pixels / p.pixels <= LIKE_PIXELS]
    return [{"name": p.name, "kind": "published", "note": p.note, "points": _points(p.seconds)} for p in like]


def _points(seconds: Mapping[int, float]) -> list[dict[str, Any]]:
    """Speed-up and efficiency of each count over the smallest one."""
    base = min(seconds)
    gains = {n: seconds[base] * base / t for n, t in sorted(seconds.items())}
    return [{"gpus": n, "seconds": seconds[n], "speedup": gain, "efficiency": gain / n} for n, gain in gains.items()]


def published(path: Path) -> tuple[list[SweepPoint], list[Message]]:
    """Read a file of published cells (docs/benchmarks): comparable end-to-end seconds by table, and their limits.

    A table that only repeats cells of other tables is left out. UserError if it is no such file.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))
        usable = [r for r in cells if r["usable"] and r["seconds"] and r["kind"] == "end_to_end" and not r["lossy"]]
        tables: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for cell in usable:
            tables[f"{cell['table']}{' compiled' if cell['compiled'] else ''}"].append(cell)
        for name in _copies(tables):
            del tables[name]
        kept = {name: found for name, found in tables.items() if len({r["n_gpus"] for r in found}) >= LEAST_COUNTS}
        points = [
            SweepPoint(name, r["n_gpus"], (float(r["seconds"]),), _degrees(r["layout"]), r["source"])
            for name, found in kept.items()
            for r in found
        ]
        return points, _with_offload(kept)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a file of published figures: {type(error).__name__}: {error}") from error


def _copies(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Tables that only repeat cells of others; of two that repeat each other, the first."""
    cells = {
        name: {(r["model"], r["n_gpus"], r["steps"], float(r["seconds"])) for r in found}
        for name, found in tables.items()
    }
    copies: list[str] = []
    for name, mine in cells.items():
        others = set[tuple[Any, ...]]().union(*(c for n, c in cells.items() if n != name and n not in copies))
        copies += [name] if mine <= others else []
    return copies


def _with_offload(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Message]:
    """A baseline that keeps weights in host memory is slow, so everything measured against it looks good."""
    offloaded = {
        name: {r["n_gpus"] for r in found if OFFLOAD.search(f"{r['config']} {r['notes']}")}
        for name, found in tables.items()
    }
    everywhere = [name for name, found in tables.items() if {r["n_gpus"] for r in found} == offloaded[name]]
    some = [name for name in tables if offloaded[name] and name not in everywhere]
    found = [message("offload_in_baselines", tables=some)] if some else []
    return found + ([message("offload_everywhere", tables=everywhere)] if everywhere else [])


def _degrees(layout: Mapping[str, int] | None) -> str | None:
    if layout is None:
        return None
    return " ".join(f"{axis}{degree}" for axis, degree in layout.items() if degree > 1) or "one GPU"
