"""Two runs or two sweeps side by side: what changed by more than their spread."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.report.accounting import PARTS
from opensora_launch.report.efficiency import differences, other_engine
from opensora_launch.report.run_files import SCHEMA
from opensora_launch.report.sweep import SCHEMA as SWEEP_SCHEMA

IN = ("in A", "in B")


@dataclass(frozen=True)
class Change:
    """One value in both. `beyond`: the ranges of the repeats do not meet; without repeats nothing is known of that."""

    what: str
    a: float
    b: float
    unit: str
    beyond: bool | None
    gates: bool  # whether a rise of it is a loss that `compare` fails for

    @property
    def ratio(self) -> float:
        return self.b / self.a if self.a else float("inf")


def read_either(path: Path) -> dict[str, Any]:
    """The report of a run or a sweep, by its folder or file; UserError where there is none that this version reads."""
    file = path / "report.json" if path.is_dir() else path
    again = f"make it anew: opensora-launch report {path if path.is_dir() else path.parent}"
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        of = "sweep" if "table" in data else "run"
        schema = data["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} has no report ({type(error).__name__}: {error}); {again}") from error
    if schema != (SCHEMA if of == "run" else SWEEP_SCHEMA):
        raise UserError(f"{file} has schema {schema}, which this version does not read; {again}")
    return data | {"of": of}


def compare(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Every value that both have, and what makes the comparison weak. UserError if they cannot be compared, as after
    other work: it names all that differs.
    """
    if a["of"] != b["of"]:
        raise UserError("one is a run and the other a sweep: compare two of a kind")
    try:
        return _runs(a, b) if a["of"] == "run" else _sweeps(a, b)
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # a file that somebody has changed
        raise UserError(f"one of them is not what this version writes ({type(error).__name__}: {error})") from error


def _runs(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    for report in (a, b):
        if report["times"] is None:
            raise UserError(f"{report['run']} cannot be compared", [str(report["efficiency_reason"])])
    _refuse(differences(a["work"], b["work"], *IN))
    notes = [*other_engine(a, b, *IN), "one run each: how much their times spread is not known"]
    changes = [
        Change(name, a["times"][key], b["times"][key], "s", None, True)
        for name, key in (("whole job", "job_s"), ("denoising", "denoise_s"))
    ]
    first, second = (r["attempts"][0]["ranks"] for r in (a, b))
    for part in PARTS:
        before, after = (sum(r["parts"][part] for r in ranks) / len(ranks) for ranks in (first, second))
        if max(before, after) > 0.005 * max(a["times"]["job_s"], b["times"]["job_s"]):
            changes.append(Change(f"{part}, mean of ranks", before, after, "s", None, False))
    peaks = [max((r["peak_memory_bytes"] or 0 for r in ranks), default=0) / 2**30 for ranks in (first, second)]
    changes.append(Change("peak memory of a rank", peaks[0], peaks[1], "GiB", None, False))
    return changes, notes


def _sweeps(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    rows = [{(r["name"], r["gpus"], r["layout"]): r for r in data["table"]} for data in (a, b)]
    both = [key for key in rows[0] if key in rows[1]]
    if not both:
        raise UserError("the sweeps have no point in common: same name, count of GPUs and layout")
    notes = [f"only in {which}: {_name(key)}" for which, mine, other in (("A", *rows), ("B", *rows[::-1]))
             for key in mine if key not in other]  # fmt: skip
    unlike = [f"scaling: {a['scaling']} in A, {b['scaling']} in B"] if a["scaling"] != b["scaling"] else []
    changes = []
    for key in both:
        x, y = rows[0][key], rows[1][key]
        if x["work"] is None or y["work"] is None:  # published rows do not say
            notes.append(f"{_name(key)}: what was done is not recorded, so it may differ")
        else:
            unlike += [f"{_name(key)}: {line}" for line in differences(x["work"], y["work"], *IN)]
        apart = None
        if x["low"] is not None and y["low"] is not None:
            apart = x["low"] > y["high"] or y["low"] > x["high"]
        changes.append(Change(_name(key), x["seconds"], y["seconds"], "s", apart, True))
    _refuse(unlike)
    return changes, notes


def _refuse(unlike: Sequence[str]) -> None:
    """Less work is not faster."""
    if unlike:
        raise UserError("A and B did different work; compare equal work, on any count of GPUs in any layout", unlike)


def _name(key: Sequence[Any]) -> str:
    name, gpus, layout = key
    return f"{name}, {gpus} GPU{'s' * (gpus != 1)}" + (f", {layout}" if layout else "")
