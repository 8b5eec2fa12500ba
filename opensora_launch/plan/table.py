"""Show predictions as text and as JSON."""

from collections.abc import Iterator, Sequence
from typing import Any

from opensora_launch.plan.choose import Option
from opensora_launch.plan.fit import phase_of, reason
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement, placement_text
from opensora_launch.plan.times import rates_of, uses_nvlink
from opensora_launch.plan.workload import Workload

SHOWN = 12  # rows of the table
PHASE_COLUMNS = ("compute", "ulysses", "ring", "tensor", "gather", "launch", "vae", "save")


def plan_text(work: Workload, found: Sequence[Option], others: Sequence[Option] = (), note: str = "") -> str:
    """Return the table that `opensora-launch plan` prints: seconds with the weights loaded, best option first.

    `others` are the best options of the other placements.
    """
    head = ("", *_row_names(work), "total", *PHASE_COLUMNS, "effic.", "GiB/GPU", "GiB host", "")
    rows = [head, *(_cells(work, option, found[0]) for option in found[:SHOWN])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    layouts = 1 + len(_row_names(work))
    lines = [_line(row, widths, layouts) for row in rows]
    more = [f"... and {len(found) - SHOWN} slower layouts"] if len(found) > SHOWN else []
    about = [*_about(work, found[0].placement), *([note] if note else [])]
    return "\n".join([*about, "", *lines, *more, "", *_placed(found[0], others), *_below(work, found[0])])


def _line(row: Sequence[str], widths: Sequence[int], names: int) -> str:
    """Align names and the reason to the left, numbers to the right."""
    left = {*range(names), len(row) - 1}
    cells = [cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
    return "  ".join(cells).rstrip()


def _row_names(work: Workload) -> list[str]:
    steps = {rows: count for rows, count in work.steps if count}
    return [f"{count} steps of {rows} row{'s' * (rows > 1)}" for rows, count in sorted(steps.items(), reverse=True)]


def _cells(work: Workload, option: Option, best: Option) -> tuple[str, ...]:
    by_rows = dict(option.layouts)
    used = [rows for rows, count in sorted(work.steps, reverse=True) if count]
    why = "chosen" if option is best and best.fits else reason(option, best)
    phases = option.phases
    return (
        "*" if option is best and best.fits else "",
        *(layout_text(by_rows[rows]) for rows in used),
        seconds_text(phases.making),
        *(seconds_text(getattr(phases, part)) for part in PHASE_COLUMNS),
        f"{option.efficiency:.1%}",
        f"{option.memory.peak / GIB:.1f}",
        f"{option.memory.host / GIB:.0f}",
        why,
    )


def _about(work: Workload, placement: Placement) -> Iterator[str]:
    video, grid, card = work.video, work.grid, work.card
    tokens = grid.total_tokens
    yield (
        f"{work.net.name}: {video.width_px} x {video.height_px} pixels, {video.num_frames} frames, {tokens:,} tokens; "
        f"{work.videos} video{'s' * (work.videos > 1)}"
    )
    nodes = work.ranks // work.gpus_per_node
    speed = min(rates_of(one, work.topology, work.products).link_bytes for one in card.each) / 1e9
    kind = "NVLink" if uses_nvlink(card, work.topology) else card.pcie_text
    link = f", {kind} at {speed:.0f} GB/s" if work.ranks > 1 else ""
    where = f" on {nodes} nodes" if nodes > 1 else ""
    yield (
        f"{work.ranks} x {card.name}{where}{link}, {card.memory_gib:.1f} GiB each; {placement_text(placement)}; "
        f"products in {work.products}"
    )


def _placed(best: Option, others: Sequence[Option]) -> Iterator[str]:
    """Say why the other placements were not chosen."""
    for option in others:
        yield f"not chosen: {placement_text(option.placement)} ({reason(option, best)})"


def _below(work: Workload, best: Option) -> Iterator[str]:
    phases, memory = best.phases, best.memory
    yield (
        f"before that, once: weights from disk {seconds_text(phases.load)} s, text {seconds_text(phases.text)} s; "
        f"in total {seconds_text(phases.total)} s and {best.energy_kwh:.3f} kWh"
    )
    yield (
        f"memory per GPU: weights {memory.weights / GIB:.1f}, activations {memory.activations / GIB:.1f}; peaks: text "
        f"{memory.text / GIB:.1f}, denoising {memory.denoise / GIB:.1f}, VAE {memory.decode / GIB:.1f} of "
        f"{best.limit_bytes / GIB:.1f} GiB"
    )
    yield "predicted, not measured: docs/plan.md explains how, docs/prediction.md how accurately"


def layout_text(layout: Layout) -> str:
    """Return the axes that are in use: "cfg2 ulysses4"."""
    used = [f"{axis}{degree}" for axis, degree in vars(layout).items() if degree > 1]
    return " ".join(used) or "1 rank"


def seconds_text(value: float) -> str:
    """Write seconds with one decimal below 1000."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.1f}"


def placement_json(placement: Placement) -> dict[str, Any]:
    """Return the fields of a placement as JSON values."""
    return vars(placement) | {name: getattr(placement, name).value for name in ("shard", "offload", "storage")}


def plan_json(
    work: Workload, found: Sequence[Option], others: Sequence[Option], problems: Sequence[str]
) -> dict[str, Any]:
    """Return the same as data: seconds, bytes, and why each other option was not chosen."""
    chosen = bool(found) and found[0].fits
    return {
        "schema": 1,
        "model": work.net.name,
        "hardware": work.card.name,
        "precision": work.products,
        "ranks": work.ranks,
        "gpus_per_node": work.gpus_per_node,
        "tokens": work.grid.total_tokens,
        "steps": [{"rows": rows, "count": count} for rows, count in work.steps],
        "problems": list(problems),
        "other_placements": [
            {
                "placement": placement_json(option.placement),
                "fits": option.fits,
                "reason": reason(option, found[0]),
                "making": option.phases.making,
                "peak": option.memory.peak,
            }
            for option in others
        ],
        "options": [
            {
                "chosen": chosen and option is found[0],
                "fits": option.fits,
                "reason": "chosen" if chosen and option is found[0] else reason(option, found[0]),
                "layouts": {str(rows): vars(layout) for rows, layout in option.layouts},
                "placement": placement_json(option.placement),
                "seconds": vars(option.phases) | {"making": option.phases.making, "total": option.phases.total},
                "efficiency": option.efficiency,
                "energy_kwh": option.energy_kwh,
                "memory_bytes": vars(option.memory) | {"peak": option.memory.peak, "limit": option.limit_bytes},
                "peak_phase": phase_of(option),
            }
            for option in found
        ],
    }
