"""How close a run came to the hardware's limits: FLOP/s, bytes per second, joules; and the serial share of the work.

Unknown values are None, with a reason beside them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from opensora_launch.plan.costs import row_work
from opensora_launch.plan.networks import TokenGrid, network_of
from opensora_launch.plan.plan import Plan
from opensora_launch.report.accounting import Accounts
from opensora_launch.report.wording import Message, label, message
from opensora_launch.schema.cards import Card

JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Prices:
    """Prices that the user gives; None is unknown."""

    usd_per_gpu_hour: float | None = None
    usd_per_kwh: float | None = None


def row_flops(plan: Plan) -> float:
    """FLOPs of one row in one forward of the diffusion transformer, as planned."""
    shape = plan.geometry
    grid = TokenGrid(shape.latent_frames, shape.tokens_per_frame, shape.text_tokens)
    return row_work(network_of(plan.model), grid).flops


def compute_rates(plan: Plan, accounts: Accounts, row_forwards: int, card: Card | None) -> dict[str, Any]:
    """FLOP/s of a rank while it computed, and MFU over the whole denoise phases, waiting included. No text, no VAE."""
    flops = row_flops(plan) * row_forwards
    computing = sum(r.parts["compute"] for r in accounts.ranks)
    denoise = sum(r.denoise_s for r in accounts.ranks)
    products = "tf32" if plan.precision == "fp32" and plan.numerics.tf32 else plan.precision
    tflops = card.tflops(products) if card else None
    peak = tflops * 1e12 if tflops else None
    return {
        "flops_per_row_forward": row_flops(plan),
        "flops": flops,
        "flops_per_s_computing": flops / computing if computing else None,
        "flops_per_s": flops / denoise if denoise else None,
        "peak_flops_per_s": peak,
        "mfu": flops / denoise / peak if peak and denoise else None,
        "mfu_reason": None if peak else _no_peak(plan, accounts, card),
    }


def _no_peak(plan: Plan, accounts: Accounts, card: Card | None) -> Message:
    if plan.machine.device == "cpu":
        return message("cpu_peak_unknown")
    if card is None:
        return message("card_unknown", cards=sorted({r.device_name for r in accounts.ranks}))
    return message("precision_unknown", card=card.name, precision=plan.precision)


def link_rates(plan: Plan, accounts: Accounts, card: Card | None) -> list[dict[str, Any]]:
    """By axis: the bytes that ranks sent, the seconds in which they could not compute, and the share of the peak."""
    several = plan.machine.nodes > 1
    peak = None  # bytes per second, one way, between the GPUs of one node
    if card and not several:
        gb_s = card.nvlink_gb_s if plan.machine.gpus_per_node <= card.nvlink_gpus else card.pcie_gb_s
        peak = gb_s * 1e9 if gb_s else None
    reason = message("node_links_unknown") if several else message("link_peak_unknown")
    found = []
    for axis in sorted({axis for r in accounts.ranks for axis in r.bytes_by_axis}):
        sent = sum(r.bytes_by_axis.get(axis, 0) for r in accounts.ranks)
        seconds = sum(r.communication_by_axis.get(axis, 0.0) for r in accounts.ranks)
        if not sent:
            continue
        rate = sent / seconds if seconds else None
        found.append(
            {
                "axis": axis,
                "bytes": sent,
                "seconds": seconds,
                "bytes_per_s": rate,
                "share": rate / peak if rate and peak else None,
                "reason": None if peak else reason,
            }
        )
    return found


def energy(attempts: Sequence[Mapping[str, Any]], videos: int, usd_per_kwh: float | None) -> dict[str, Any]:
    """Energy of all GPUs, from their counters or else their mean power; without CPUs, fans and switches.

    `attempts` are the report's. It is unknown where one GPU's is, or where one attempt has no readings.
    """
    total = _sum_of_known([_joules_of(attempt) for attempt in attempts])
    per_video = total / videos if total is not None and videos else None
    return {
        "joules": total,
        "kwh": None if total is None else total / JOULES_PER_KWH,
        "joules_per_video": per_video,
        "usd_per_video": per_video / JOULES_PER_KWH * usd_per_kwh if per_video and usd_per_kwh else None,
        "reason": None if total is not None else message("no_power_readings"),
    }


def _joules_of(attempt: Mapping[str, Any]) -> float | None:
    """MIG instances have their card's."""
    joules = dict[tuple[str, int], float | None]()
    for gpu in attempt["gpus"]:
        mean_w, counted = gpu["power_mean_w"], gpu["energy_j"]
        by_power = None if mean_w is None else mean_w * attempt["wall_s"]
        joules[gpu["host"], gpu["index"]] = by_power if counted is None else counted
    return _sum_of_known(joules.values())


def _sum_of_known(values: Collection[float | None]) -> float | None:
    """The sum; None where one of the values is unknown, or where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def cost(attempts: Sequence[Mapping[str, Any]], videos: int, usd_per_gpu_hour: float | None) -> dict[str, Any]:
    """Rent of the ranks' devices for the wall time of all attempts, at the user's price per hour of a device."""
    hours = sum(len(attempt["ranks"]) * attempt["wall_s"] for attempt in attempts) / 3600
    usd = None if usd_per_gpu_hour is None else hours * usd_per_gpu_hour
    return {
        "gpu_hours": hours,
        "gpu_hours_per_video": hours / videos if videos else None,
        "usd": usd,
        "usd_per_video": usd / videos if usd is not None and videos else None,
        "reason": message("no_price") if usd is None else None,
    }


def used_text(report: Mapping[str, Any]) -> str:
    """One line: device hours, energy and money, as far as they are known. Empty where no rank left events."""
    if not (cost := report["cost"]):
        return ""
    device = label("gpu_hours_of" if report["machine"]["device"] == "cuda" else "cpu_rank_hours_of")
    per_video = cost["usd_per_video"] if report["videos"]["done"] > 1 else None
    values = {"hours": cost["gpu_hours"], "kwh": report["energy"]["kwh"], "usd": cost["usd"], "per_video": per_video}
    return label("used", device=device, **{name: None if v is None else amount(v) for name, v in values.items()})


def amount(value: float) -> str:
    """Hours, kWh or dollars with as many digits as matter."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def imbalance(accounts: Accounts) -> dict[str, Any]:
    """The busiest rank over the mean, minus 1, for compute seconds and for row-forwards."""
    by_rank = {
        "compute": [r.parts["compute"] for r in accounts.ranks],
        "row_forwards": [float(r.row_forwards) for r in accounts.ranks],
    }
    return {of: max(found) / fmean(found) - 1 if any(found) else None for of, found in by_rank.items()}


def karp_flatt(speedup: float, ranks: int) -> float | None:
    """The serial share that explains a speed-up: (1/S - 1/n) / (1 - 1/n). Karp and Flatt 1990."""
    return None if ranks < 2 else (1 / speedup - 1 / ranks) / (1 - 1 / ranks)


def karp_flatt_text(share: float | None) -> str:
    """Word the share: above 1, more ranks took longer."""
    return "" if share is None else label("no_speedup") if share > 1 else f"{share:.1%}"


def amdahl(points: Sequence[tuple[int, float]]) -> dict[str, float] | None:
    """Fit t = a + b/n to (ranks, seconds): the serial share a/(a+b), by least squares of relative errors.

    Relative errors keep long times from deciding alone. Neither part is below 0; b is 0 where no speed-up was
    measured. None with fewer than two counts. Amdahl 1967.
    """
    if len({n for n, _ in points}) < 2:
        return None
    terms = [(1 / t, 1 / (n * t)) for n, t in points]  # a u + b v = 1
    uu, uv, vv = (sum(r[i] * r[j] for r in terms) for i, j in ((0, 0), (0, 1), (1, 1)))
    u, v = sum(r[0] for r in terms), sum(r[1] for r in terms)
    det = uu * vv - uv * uv
    a, b = (u * vv - v * uv) / det, (v * uu - u * uv) / det
    if a < 0:  # no part is negative: the other part alone fits best
        a, b = 0.0, v / vv
    elif b < 0:
        a, b = u / uu, 0.0
    return {"serial_s": a, "parallel_s": b, "serial_share": a / (a + b)}
