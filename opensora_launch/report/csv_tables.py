"""Tables of a run or a sweep for spreadsheets."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.report.wording import say


def ranks_csv(report: Mapping[str, Any]) -> str:
    """One line per rank and attempt: seconds by part, compute by kind, communication by axis."""
    ranks = [(a["attempt"], r) for a in report["attempts"] for r in a["ranks"]]
    kinds = sorted({kind for _, r in ranks for kind in r["compute_by_kind"]})
    axes = sorted({axis for _, r in ranks for axis in r["communication_by_axis"]})
    head = [
        "attempt", "rank", "host", "device", "wall_s", *(f"{part}_s" for part in WALL_PARTS),
        *(f"compute_{kind}_s" for kind in kinds), *(f"communication_{axis}_s" for axis in axes),
        "own_row_forwards", "peak_memory_bytes", "complete",
    ]  # fmt: skip
    return _csv(head, (
        [number, r["rank"], r["host"], r["device_name"], r["wall_s"], *(r["parts"][part] for part in WALL_PARTS),
         *(r["compute_by_kind"].get(kind, "") for kind in kinds),
         *(r["communication_by_axis"].get(axis, "") for axis in axes),
         r["own_row_forwards"], r["peak_memory_bytes"], r["complete"]]
        for number, r in ranks
    ))  # fmt: skip


def sweep_csv(data: Mapping[str, Any]) -> str:
    """One line per point of a sweep's table; unknown values are empty."""
    names = ["name", "gpus", "layout", "seconds", "low", "high", "repeats", "speedup", "efficiency", "karp_flatt"]
    rows = ([*(e[name] for name in names), "; ".join(map(say, e["other_work"])), e["source"]] for e in data["table"])
    return _csv([*names, "other_work", "source"], rows)


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([head, *rows])
    return out.getvalue()
