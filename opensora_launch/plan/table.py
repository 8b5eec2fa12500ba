"""Show predictions as text and as JSON."""

import math
import re
from collections.abc import Iterator, Sequence, Set
from textwrap import fill
from typing import Any

from opensora_launch.plan.choose import Option, overlap_saves_s
from opensora_launch.plan.compile_choice import COMPILE_S, saved_s
from opensora_launch.plan.fit import phase_of, reason
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement, placement_text
from opensora_launch.plan.times import rates_of, uses_nvlink
from opensora_launch.plan.video_size import busiest_pixels
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import Engine

SHOWN = 12  # rows of the table
SMALLEST_S = 0.05  # that is shown
NARROW = 80  # characters of a line
PHASE_COLUMNS = ("compute", "ulysses", "ring", "tensor", "gather", "launch", "vae", "save")


def plan_text(
    work: Workload,
    found: Sequence[Option],
    others: Sequence[Option] = (),
    note: str = "",
    *,
    wide: bool = False,
    usd_per_gpu_hour: float | None = None,
) -> str:
    """Return the table that `opensora-launch plan` prints: seconds with the weights loaded, best option first.

    `others` are the best options of the other placements. With `wide`, each phase that takes time has a column, and
    each layout and placement has the reason why it is not chosen.
    """
    shown = found[:SHOWN]
    phases = [part for part in PHASE_COLUMNS if wide and any(seconds_of(one, part) != "0.0" for one in shown)]
    names = [("", ""), *_row_names(work)]
    numbers = [("total", "s"), *((part, "s") for part in phases), ("effic.", ""), ("memory", "GiB/GPU")]
    numbers += [("host", "GiB/node")] if wide else []
    heads = [*zip(*names, *numbers, ("", "why not"), strict=False)]
    rows = [*heads, *(_cells(work, option, found[0], phases, wide) for option in shown)]
    lines = aligned(rows, {*range(len(names)), len(rows[0]) - 1})
    more = [f"... and {len(found) - SHOWN} slower layouts"] if len(found) > SHOWN else []
    about = [*_about(work, found[0].placement), *([note] if note else [])]
    placed = _placed(found[0], others, wide)
    return "\n".join([*about, "", *lines, *more, "", *placed, *_below(work, found[0], usd_per_gpu_hour)])


def aligned(rows: Sequence[Sequence[str]], left: Set[int]) -> list[str]:
    """Lines of a table whose columns are aligned: those in `left` to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _row_names(work: Workload) -> list[tuple[str, str]]:
    steps = {rows: count for rows, count in work.steps if count}
    return [
        (f"{count} steps", f"of {rows} row{'s' * (rows > 1)}") for rows, count in sorted(steps.items(), reverse=True)
    ]


def _cells(work: Workload, option: Option, best: Option, phases: Sequence[str], wide: bool) -> tuple[str, ...]:
    by_rows = dict(option.layouts)
    used = [rows for rows, count in sorted(work.steps, reverse=True) if count]
    why = "chosen" if option is best and best.fits else reason(option, best)
    if not (wide or option.fits):
        why = "does not fit"
    return (
        "*" if option is best and best.fits else "",
        *(layout_text(by_rows[rows]) for rows in used),
        seconds_text(option.phases.making),
        *(seconds_of(option, part) for part in phases),
        f"{option.efficiency:.1%}",
        f"{option.memory.peak / GIB:.1f}",
        *([f"{option.memory.host / GIB:.0f}"] if wide else []),
        why if wide else re.split("[:;]", why)[0],
    )


def what_is_made(work: Workload) -> str:
    """The model, and the number and size of the videos."""
    video, is_image = work.video, work.video.num_frames == 1
    made = f"{work.videos} {'image' if is_image else 'video'}{'s' * (work.videos > 1)}"
    size = f"{video.width_px} x {video.height_px} pixels" + ("" if is_image else f", {video.length}")
    return f"{work.net.name}: {made}, {size}, {work.grid.total_tokens:,} tokens"


def _about(work: Workload, placement: Placement) -> Iterator[str]:
    card = work.card
    yield what_is_made(work)
    nodes = work.ranks // work.gpus_per_node
    speed = min(rates_of(one, work.topology, work.products).link_bytes for one in card.each) / 1e9
    kind = "NVLink" if uses_nvlink(card, work.topology) else card.pcie_text
    link = f", {kind} at {speed:.0f} GB/s" if work.ranks > 1 else ""
    where = f" on {nodes} nodes" if nodes > 1 else ""
    yield f"{work.ranks} x {card.name}{where}{link}, {card.memory_gib:.1f} GiB each"
    fp8 = ", the large ones in fp8 (approximate)" if work.net.fp8_share else ""
    yield _narrow(f"{placement_text(placement)}; products in {work.products}{fp8}")
    if work.approximate:
        yield _narrow(f"approximate: {', '.join(work.approximate)}")


def _narrow(line: str) -> str:
    """Break a line that is too long for a narrow terminal."""
    return fill(line, NARROW, subsequent_indent="  ")


def _placed(best: Option, others: Sequence[Option], wide: bool) -> Iterator[str]:
    """Say why the other placements were not chosen; those that are as fast are one line."""
    same = [option for option in others if option.fits and reason(option, best).startswith("equally fast")]
    for option in others:
        if option not in same:
            why = reason(option, best)
            line = f"not chosen: {placement_text(option.placement)} ({why if wide else why.split(':')[0]})"
            yield line if wide else _narrow(line)
    if same and wide:
        yield f"as fast: {'; '.join(placement_text(option.placement) for option in same)}"
    elif same:
        yield f"as fast: {len(same)} other placement{'s' * (len(same) > 1)} of the weights (--wide names them)"


def _below(work: Workload, best: Option, usd_per_gpu_hour: float | None) -> Iterator[str]:
    phases, memory = best.phases, best.memory
    spent = (f"{part} {seconds_of(best, part)}" for part in PHASE_COLUMNS if seconds_of(best, part) != "0.0")
    yield f"seconds: {', '.join(spent)}"
    images = f", images {seconds_text(phases.image)}" if best.images else ""
    images += f", compiling {seconds_text(phases.compile)}" if phases.compile else ""
    yield f"before that, once: weights from disk {seconds_text(phases.load)}, text {seconds_text(phases.text)}{images}"
    yield from _savings(work, best)
    yield from _images(work, best)
    price = "" if usd_per_gpu_hour is None else f", {cost_text(cost_usd(work, best, usd_per_gpu_hour))}"
    yield f"in total: {seconds_text(phases.total)} s, {best.energy_kwh:.3f} kWh{price}"
    yield (
        f"GiB per GPU: weights {memory.weights / GIB:.1f}, activations {memory.activations / GIB:.1f}; peaks: text "
        f"{memory.text / GIB:.1f},\n  denoising {memory.denoise / GIB:.1f}, VAE {memory.decode / GIB:.1f} of "
        f"{best.limit_bytes / GIB:.1f}"
    )
    yield "predicted, not measured: docs/plan.md explains how, docs/prediction.md how well"


def _savings(work: Workload, best: Option) -> Iterator[str]:
    """Say what compiled blocks save, or would; and what overlap and sharing save."""
    if work.engine is Engine.native:
        saves = "compiled blocks save" if work.compiled else "compile=on would save"
        yield f"{saves} about {seconds_text(saved_s(work))} s of the steps, for {COMPILE_S:.0f} s once"
    rounds = math.ceil(work.batches / best.layout.dp)
    hidden_s = rounds * overlap_saves_s(work, best.layouts, best.placement) if work.overlap else 0.0
    ranks = work.ranks // best.layout.dp
    shared = busiest_pixels(work.video, ranks, whole=True) / busiest_pixels(work.video, ranks) - 1
    for what, saved in (
        ("Ulysses exchanging while blocks compute", hidden_s),
        ("sharing the VAE's largest tiles", shared * best.phases.vae),
    ):
        if saved >= SMALLEST_S:
            yield f"{what} saves about {seconds_text(saved)} s"


def _images(work: Workload, best: Option) -> Iterator[str]:
    """Say how the first frames are made."""
    if work.images is None or best.images is None:
        return
    how = best.images
    yield f"  images by {what_is_made(work.images)}:"
    yield _narrow(f"  {layout_text(how.layout)}, {placement_text(how.placement)};")
    load, making = seconds_text(how.phases.load), seconds_text(how.phases.making)
    yield f"  {making} s after {load} for weights from disk, {how.memory.peak / GIB:.1f} GiB per GPU"


def cost_usd(work: Workload, option: Option, usd_per_gpu_hour: float) -> float:
    """The rent of all GPUs for the whole run, with loading."""
    return option.phases.total / 3600 * work.ranks * usd_per_gpu_hour


def cost_text(usd: float) -> str:
    """Write an amount with cents, and one below a dollar with one more place."""
    return f"{usd:,.2f} USD" if usd >= 1 else f"{usd:.3f} USD"


def layout_text(layout: Layout) -> str:
    """Return the axes that are in use: "cfg2 ulysses4"."""
    used = [f"{axis}{degree}" for axis, degree in vars(layout).items() if degree > 1]
    return " ".join(used) or "1 rank"


def seconds_of(option: Option, part: str) -> str:
    return seconds_text(getattr(option.phases, part))


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
                "images": _images_json(work, option),
            }
            for option in found
        ],
    }


def _images_json(work: Workload, option: Option) -> dict[str, Any] | None:
    if work.images is None or option.images is None:
        return None
    how = option.images
    return {
        "model": work.images.net.name,
        "images": work.images.videos,
        "layouts": {str(rows): vars(layout) for rows, layout in how.layouts},
        "placement": placement_json(how.placement),
        "seconds": vars(how.phases) | {"making": how.phases.making, "total": how.phases.load + how.phases.making},
        "memory_bytes": vars(how.memory) | {"peak": how.memory.peak, "limit": how.limit_bytes},
        "fits": how.fits,
    }
