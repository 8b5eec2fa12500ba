"""Why a scaling curve bends: where the time of all ranks goes as GPUs are added, and what to do about it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.report.losses import LEAST_LOSS
from opensora_launch.report.wording import Message, message

WORTH_IT = 0.6  # t_a x a / (t_b x b): with less, the GPUs from a to b are hardly used
MOST_ADVICE = 2  # of the run with the most GPUs
CAUSES = {
    "waiting": ("loss_wait", "loss_in_turn"),
    "communication": ("loss_exchange",),
    "idle": ("loss_part",),
    "tail": ("loss_ends",),
}  # of a part that grew
LABELS_OF_PARTS = {"tail": "loss_tail"}
EVERYWHERE = ("loss_starved", "loss_held_down")  # these make every part longer


@dataclass(frozen=True)
class MeasuredPoint:
    """A point of a sweep: its median seconds, and the report of the repeat that is nearest to them."""

    series: str
    gpus: int
    seconds: float
    report: Mapping[str, Any]


def explain_scaling(
    line: Mapping[str, Any], measured: Sequence[MeasuredPoint], *, weak: bool, unit_of: Mapping[int, Message]
) -> dict[str, Any]:
    """For one line of the curve: the mean rank's seconds by part at each count, what grew most, and advice.

    In seconds of all ranks, the growth of all parts adds up to what the efficiency lacks to 1.
    """
    drawn = [(p["gpus"], p["seconds"], p["efficiency"]) for p in line["points"]]
    points = {m.gpus: m for m in measured if m.series == line["name"] and (m.gpus, m.seconds) in {p[:2] for p in drawn}}
    bars = [{"gpus": gpus, "parts": _parts_of(points[gpus].report)} for gpus, _, _ in drawn]
    most, _, efficiency = drawn[-1]
    last = points[most].report
    sizes = {"base": unit_of[drawn[0][0]], "size": unit_of[most], "efficiency": efficiency}
    return {
        "name": line["name"],
        "bars": bars,
        "why": _why(bars, last, sizes, weak=weak),
        "advice": [*_enough(drawn, weak=weak, unit_of=unit_of), *last["advice"][:MOST_ADVICE]],
    }


def _parts_of(report: Mapping[str, Any]) -> dict[str, float]:
    """The mean rank's seconds; with `tail`, in which it had not begun or was over, they are the wall time."""
    (attempt,) = report["attempts"]
    ranks = attempt["ranks"]
    parts = {part: sum(r["parts"].get(part, 0.0) for r in ranks) / len(ranks) for part in WALL_PARTS}
    return parts | {"tail": max(0.0, attempt["wall_s"] - sum(parts.values()))}


def _why(
    bars: Sequence[Mapping[str, Any]], last: Mapping[str, Any], sizes: Mapping[str, Any], *, weak: bool
) -> Message:
    if sizes["efficiency"] > 1 - LEAST_LOSS:
        return message("scales_well", **sizes)
    base, most = bars[0], bars[-1]
    ranks, whole_s = most["gpus"], most["gpus"] * sum(most["parts"].values())
    before = ranks if weak else base["gpus"]
    grown = {part: (ranks * s - before * base["parts"][part]) / whole_s for part, s in most["parts"].items()}
    part = max(grown, key=lambda p: grown[p])
    (attempt,) = last["attempts"]
    codes = (*CAUSES.get(part, ()), *EVERYWHERE)
    cause = next((loss for loss in attempt["losses"] if loss["code"] in codes and loss["share"] >= LEAST_LOSS), None)
    what = message(LABELS_OF_PARTS.get(part, part))
    return message("bends", **sizes, what=what, share=grown[part], cause=cause)


def _enough(
    drawn: Sequence[tuple[int, float, float]], *, weak: bool, unit_of: Mapping[int, Message]
) -> list[dict[str, Any]]:
    """Advice to stop at the first count after which more GPUs are hardly used."""
    for (few, slow_s, _), (many, fast_s, _) in pairwise(drawn):
        worth = slow_s / fast_s if weak else slow_s * few / (fast_s * many)
        if worth < WORTH_IT:
            what = message("little_more", few=unit_of[few], many=unit_of[many], used=worth)
            return [{"what": what, "do": message("use_fewer", few=unit_of[few])}]
    return []


def scaling_notes(data: Mapping[str, Any]) -> list[Message]:
    """What to read first of a sweep: whether the machine was busy, and why each curve bends."""
    busy = [line for line in data["unknown"] if line["code"] == "machine_busy"]
    return [*busy, *(message("of_series", name=e["name"], why=e["why"]) for e in data["explained"])]
