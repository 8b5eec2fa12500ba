"""Compare two runs or two sweeps: what changed, and whether by more than their spread."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.report.efficiency import differences, engine_of, refuse_without_times
from opensora_launch.report.run_files import READABLE_REPORTS
from opensora_launch.report.sweep import size
from opensora_launch.report.wording import Message, message, say


@dataclass(frozen=True)
class Change:
    """One value in both. `beyond`: the ranges of the repeats do not overlap; None without repeats."""

    name: Message
    a: float
    b: float
    unit: str
    beyond: bool | None
    gates: bool  # whether `compare` fails if it rises

    @property
    def what(self) -> str:
        return say(self.name)

    @property
    def ratio(self) -> float:
        return self.b / self.a if self.a else float("inf")


def read_either(path: Path) -> dict[str, Any]:
    """Read the report of a run or a sweep by its folder or file; UserError if this version cannot read one there."""
    file = path / "report.json" if path.is_dir() else path
    again = f"make it again: opensora-launch report {path if path.is_dir() else path.parent}"
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = data["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has no report ({type(error).__name__}: {error}); {again}") from error
    if schema not in READABLE_REPORTS:  # sweeps have the same versions
        raise UserError(f"{file} has schema {schema}, which this version does not read; {again}")
    return data | {"of": "sweep" if "table" in data else "run"}


def compare_reports(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[Message]]:
    """Return every value that both have, and what weakens the comparison.

    UserError if they cannot be compared; after different work it names every difference.
    """
    if a["of"] != b["of"]:
        raise UserError("one is a run and the other is a sweep: compare two of a kind")
    try:
        return _runs(a, b) if a["of"] == "run" else _sweeps(a, b)
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # a file that somebody has changed
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"one of the reports is not what this version writes ({why})") from error


def _runs(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[Message]]:
    for report in (a, b):
        refuse_without_times(report, "be compared")
    _refuse(_unlike(a["work"], b["work"]))
    notes = [message("one_run_each")]
    if (first := engine_of(a)) != (second := engine_of(b)):
        notes.insert(0, message("engines_differ", a=first, b=second))
    changes = [
        Change(name, a["times"][key], b["times"][key], "s", None, True)
        for name, key in ((message("whole_job"), "job_s"), (message("denoising"), "denoise_s"))
    ]
    both = [report["attempts"][0]["ranks"] for report in (a, b)]
    for part in WALL_PARTS:
        before, after = (sum(r["parts"].get(part, 0.0) for r in ranks) / len(ranks) for ranks in both)
        if max(before, after) > 0.005 * max(a["times"]["job_s"], b["times"]["job_s"]):
            changes.append(Change(message("mean_of_ranks", part=message(part)), before, after, "s", None, False))
    peaks = [max((r["peak_memory_bytes"] or 0 for r in ranks), default=0) / 2**30 for ranks in both]
    changes.append(Change(message("peak_of_ranks"), peaks[0], peaks[1], "GiB", None, False))
    return changes, notes


def _sweeps(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[Message]]:
    first, second = ({(e["name"], e["gpus"], e["layout"]): e for e in data["table"]} for data in (a, b))
    unit = a.get("unit", "GPU")
    both = [key for key in first if key in second]
    if not both:
        raise UserError("the sweeps have no point in common: none has the same name, count of GPUs and layout")
    notes = [message("only_in", side="A", point=_name(key, unit)) for key in first if key not in second]
    notes += [message("only_in", side="B", point=_name(key, unit)) for key in second if key not in first]
    unlike = [f"scaling: {a['scaling']} in A, {b['scaling']} in B"] if a["scaling"] != b["scaling"] else []
    changes = []
    for key in both:
        x, y = first[key], second[key]
        if x["work"] is None or y["work"] is None:  # as of published figures
            notes.append(message("work_unrecorded", point=_name(key, unit)))
        else:
            unlike += [f"{say(_name(key, unit))}: {line}" for line in _unlike(x["work"], y["work"])]
        apart = None
        if x["low"] is not None and y["low"] is not None:
            apart = x["low"] > y["high"] or y["low"] > x["high"]
        changes.append(Change(_name(key, unit), x["seconds"], y["seconds"], "s", apart, True))
    _refuse(unlike)
    return changes, notes


def _unlike(work: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [f"{d['key']}: {d['here']} in A, {d['baseline']} in B" for d in differences(work, other)]


def _refuse(unlike: Sequence[str]) -> None:
    """UserError after different work: less work is not faster."""
    if unlike:
        raise UserError("A and B did different work; compare equal work, on any count of GPUs in any layout", unlike)


def _name(key: Sequence[Any], unit: str) -> Message:
    name, gpus, layout = key
    return message("sweep_point", name=name, size=size(gpus, unit), layout=layout)
