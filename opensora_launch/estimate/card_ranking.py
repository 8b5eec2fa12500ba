"""Rank cards for a video by predicted time, cost and power. Memory comes first, because it decides what runs at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from opensora_launch.estimate.builds import Build, usd_per_gpu_hour
from opensora_launch.estimate.cost import OutputCost, Running, cost_of
from opensora_launch.plan.choose import Option, options, ways_to_fit
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.fit import fit_problems, phase_of
from opensora_launch.plan.image_stage import after_images, image_fit_problems
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import as_overrides
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import LayoutConfig
from opensora_launch.schema.prices import CardOrder, EstimateConfig

FITS, WITH_HELP, NOT = 0, 1, 2


@dataclass(frozen=True)
class CardEstimate:
    """One video on `gpus` of one card. `seconds` and `cost` are None if it does not fit, `usd` without a price."""

    card: Card
    gpus: int
    fit: int  # FITS (replicated), WITH_HELP (by another placement of the weights) or NOT
    how: str  # the placement that makes it fit, or what is missing
    peak_gib: float
    seconds: float | None
    cost: OutputCost | None
    usd: float | None
    watts: float  # of all machines at full load


def video_flops(work: Workload) -> float:
    """Return the FLOPs of denoising a video and its first frame: steps x rows x FLOPs per row / videos of a batch."""
    rows = sum(rows * count for rows, count in work.steps)
    images = video_flops(work.images) * work.images.videos / max(work.videos, 1) if work.images else 0.0
    return rows * row_work(work.net, work.grid).flops * work.batches / max(work.videos, 1) + images


def build_of(card: Card, gpus: int, prices: EstimateConfig) -> Build:
    """Describe a machine with these cards. The price is only valid if the card has one (see `has_price`)."""
    each = prices.gpu_usd if prices.gpu_usd is not None else card.price_usd or 0.0
    parts = (
        (f"{gpus} x {card.name}", gpus * each),
        ("CPU and mainboard", prices.cpu_usd),
        ("memory", prices.memory_usd),
        ("storage", prices.storage_usd),
        ("case, supply, other", prices.other_usd),
    )
    return Build(gpus, float(card.tdp_w), prices.cpu_w, prices.other_w, parts)


def has_price(card: Card, prices: EstimateConfig) -> bool:
    """Return whether a price for the card is configured or in the catalogue."""
    return prices.gpu_usd is not None or card.price_usd is not None


def running_of(card: Card, gpus: int, flops_per_s: float, prices: EstimateConfig) -> Running:
    """Return one GPU's rates: its rent, with power, if that is set or it has no price; else the price over its life."""
    build, rent = build_of(card, gpus, prices), prices.usd_per_gpu_hour
    watts = build.draw_w / gpus
    if rent is None and has_price(card, prices):
        owned = usd_per_gpu_hour(build, prices.life_months, prices.hours_per_month)
        return Running(flops_per_s, watts, owned, prices.usd_per_kwh)
    return Running(flops_per_s, watts, prices.cloud_usd_per_gpu_hour if rent is None else rent, usd_per_kwh=0.0)


def estimate_card(work: Workload, fixed: LayoutConfig, prices: EstimateConfig) -> CardEstimate:
    """Estimate the best layout on the work's card, with the weights placed so that they fit."""
    card = work.card
    watts = build_of(card, work.gpus_per_node, prices).draw_w * max(1, work.ranks // work.gpus_per_node)
    if card.tflops(work.products) is None:
        how = f"it has no {work.products}; use precision=auto"
        return CardEstimate(card, work.ranks, NOT, how, 0.0, None, None, None, watts)
    found = after_images(work, options(work, fixed))
    best, fit, how = found[0], FITS, "fits"
    if best.fits and best.placement.streamed:
        fit, how = WITH_HELP, as_overrides(best.placement)
    elif not best.fits:
        helped = [option for option in after_images(work, ways_to_fit(work, fixed)[:1]) if option.fits]
        best, fit = (helped[0], WITH_HELP) if helped else (best, NOT)
        how = as_overrides(best.placement) if helped else _lacks(work, fixed, found)
    peak = max(best.memory.peak, best.images.memory.peak if best.images else 0.0) / GIB
    if fit == NOT:
        return CardEstimate(card, work.ranks, fit, how, peak, None, None, None, watts)
    seconds = best.making / max(work.videos, 1)
    running = running_of(card, work.gpus_per_node, 0.0, prices)
    cost = cost_of(seconds * work.ranks / 3600, video_flops(work), running)
    usd = cost.usd if has_price(card, prices) or prices.usd_per_gpu_hour is not None else None
    return CardEstimate(card, work.ranks, fit, how, peak, seconds, cost, usd, watts)


def _lacks(work: Workload, fixed: LayoutConfig, found: Sequence[Option]) -> str:
    if lines := image_fit_problems(work):
        return lines[0]
    least = min(found, key=lambda option: option.memory.peak)
    problems = fit_problems(work, fixed, found)
    remedy = problems[0].rpartition("; ")[2] if problems else ""
    return f"{phase_of(least)} needs {least.memory.peak / GIB:.1f} GiB; {remedy}"


def rank_cards(found: Sequence[CardEstimate], order: CardOrder) -> list[CardEstimate]:
    """Sort by how the video fits (FITS, WITH_HELP, NOT), and within each by time, cost, watts or spare memory."""

    def key(one: CardEstimate) -> tuple[int, float, float]:
        lacking = one.peak_gib - one.card.memory_gib
        time, usd = one.seconds if one.seconds is not None else lacking, one.usd if one.usd is not None else math.inf
        by = {"time": time, "cost": usd, "watts": one.watts, "memory": lacking}[order]
        return one.fit, by, time

    return sorted(found, key=key)
