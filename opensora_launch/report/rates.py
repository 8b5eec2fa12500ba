"""How near to the hardware's limits a run came: FLOP/s, bytes a second, joules; and what the counts of ranks tell.

What cannot be known is None, and a reason stands beside it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from opensora_launch.plan.costs import row_work
from opensora_launch.plan.networks import TokenGrid, network_of
from opensora_launch.plan.plan import Plan
from opensora_launch.report.accounting import Accounts
from opensora_launch.report.cards import CardPeaks

JOULES_PER_KWH = 3.6e6


def row_flops(plan: Plan) -> float:
    """FLOPs of one row of one forward of the diffusion transformer, as it was planned."""
    shape = plan.geometry
    net = network_of(plan.model.mmdit, shape.text_tokens, plan.model.name)
    return row_work(net, TokenGrid(shape.latent_frames, shape.tokens_per_frame, shape.text_tokens)).flops


def compute_rates(plan: Plan, accounts: Accounts, row_forwards: int, card: CardPeaks | None) -> dict[str, Any]:
    """FLOP/s of a rank while it computed, and MFU: over the denoise phases whole, waiting and all. No text, no VAE."""
    flops = row_flops(plan) * row_forwards
    computing = sum(r.parts["compute"] for r in accounts.ranks)
    denoise = sum(r.denoise_s for r in accounts.ranks)
    peak = card.flops_per_s.get(plan.precision) if card else None
    return {
        "flops_per_row_forward": row_flops(plan),
        "flops": flops,
        "flops_per_s_computing": flops / computing if computing else None,
        "flops_per_s": flops / denoise if denoise else None,
        "peak_flops_per_s": peak,
        "mfu": flops / denoise / peak if peak and denoise else None,
        "mfu_reason": None if peak else _no_peak(plan, accounts, card),
    }


def _no_peak(plan: Plan, accounts: Accounts, card: CardPeaks | None) -> str:
    if plan.machine.device == "cpu":
        return "a CPU's peak rate is not known here"
    if card is None:
        return f"{', '.join(sorted({r.device_name for r in accounts.ranks}))} is not in configs/hardware"
    return f"the data sheet of {card.name} gives no rate for {plan.precision}"


def link_rates(plan: Plan, accounts: Accounts, card: CardPeaks | None) -> list[dict[str, Any]]:
    """By axis: what a rank sent, in how many seconds that it could not compute in, and the share of the link."""
    axes = sorted({axis for r in accounts.ranks for axis in r.bytes_by_axis})
    found = []
    for axis in axes:
        sent = sum(r.bytes_by_axis.get(axis, 0) for r in accounts.ranks)
        seconds = sum(r.communication_by_axis.get(axis, 0.0) for r in accounts.ranks)
        if not sent:
            continue
        rate = sent / seconds if seconds else None
        peak = card.link_bytes_per_s(plan.machine.gpus_per_node) if card and plan.machine.nodes == 1 else None
        reason = None if peak else "the link's peak rate is not known here"
        if plan.machine.nodes > 1:
            reason = "the links between nodes are not known here"
        share = rate / peak if rate and peak else None
        found.append(
            {
                "axis": axis,
                "bytes": sent,
                "seconds": seconds,
                "bytes_per_s": rate,
                "share": share,
                "reason": reason,
            }
        )
    return found


def energy(gpus: Sequence[Mapping[str, Any]], wall_s: float, videos: int, usd_per_kwh: float | None) -> dict[str, Any]:
    """Of all GPUs together, from their counters, else from mean power; not of CPUs, fans and switches."""
    joules = {(gpu["host"], gpu["index"]): _joules(gpu, wall_s) for gpu in gpus}  # MIG instances have their card's
    known = [j for j in joules.values() if j is not None]
    total = sum(known) if known and len(known) == len(joules) else None
    a_video = total / videos if total is not None and videos else None
    return {
        "joules": total,
        "joules_per_video": a_video,
        "usd_per_video": a_video / JOULES_PER_KWH * usd_per_kwh if a_video and usd_per_kwh else None,
        "reason": None if total is not None else "no GPU told its energy or power",
    }


def _joules(gpu: Mapping[str, Any], wall_s: float) -> float | None:
    if gpu["energy_j"] is not None:
        return float(gpu["energy_j"])
    return None if gpu["power_mean_w"] is None else float(gpu["power_mean_w"]) * wall_s


def cost(ranks: int, wall_s: float, videos: int, usd_per_gpu_hour: float | None) -> dict[str, Any]:
    """Rent of the GPUs for the time of the job, by what the user says an hour costs."""
    hours = ranks * wall_s / 3600
    known = usd_per_gpu_hour is not None and videos > 0
    return {
        "gpu_hours": hours,
        "gpu_hours_per_video": hours / videos if videos else None,
        "usd_per_video": hours / videos * usd_per_gpu_hour if known and usd_per_gpu_hour is not None else None,
        "reason": None if known else "no price was given: --usd-per-gpu-hour",
    }


def imbalance(accounts: Accounts) -> dict[str, Any]:
    """The busiest rank over the mean, less 1: of compute seconds and of row-forwards."""
    ranks = accounts.ranks

    def of(values: list[float]) -> float | None:
        return max(values) / fmean(values) - 1 if values and fmean(values) else None

    return {
        "compute": of([r.parts["compute"] for r in ranks]),
        "row_forwards": of([float(r.row_forwards) for r in ranks]),
    }


def karp_flatt(speedup: float, ranks: int) -> float | None:
    """The serial share that explains a speed-up: (1/S - 1/n) / (1 - 1/n). Karp and Flatt 1990."""
    return None if ranks < 2 else (1 / speedup - 1 / ranks) / (1 - 1 / ranks)


def karp_flatt_text(share: float | None) -> str:
    """In words: a share above 1 means that more ranks took longer."""
    return "" if share is None else "no speed-up" if share > 1 else f"{share:.1%}"


def amdahl(points: Sequence[tuple[int, float]]) -> dict[str, float] | None:
    """t = a + b/n by least squares over (ranks, seconds): the serial share a/(a+b), and the speed-up it allows.

    Of relative errors, so that long times do not decide alone; neither part is below 0, and b is 0 where no speed-up
    was seen. Amdahl 1967. None with fewer than two counts.
    """
    if len({n for n, _ in points}) < 2:
        return None
    rows = [(1 / t, 1 / (n * t)) for n, t in points]  # a u + b v = 1
    uu, uv, vv = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = sum(r[0] for r in rows), sum(r[1] for r in rows)
    det = uu * vv - uv * uv
    a, b = (u * vv - v * uv) / det, (v * uu - u * uv) / det
    if a < 0:  # no part is negative: then the other alone fits best
        a, b = 0.0, v / vv
    elif b < 0:
        a, b = u / uu, 0.0
    return {"serial_s": a, "parallel_s": b, "serial_share": a / (a + b)}
