"""The figures that `opensora-launch estimate` shows, each with its arithmetic. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from opensora_launch.errors import must_be_positive
from opensora_launch.estimate import cost as e
from opensora_launch.estimate.builds import Build, cooling, gpu_cap_w, purchase_or_cloud, supplies
from opensora_launch.schema.prices import EstimateConfig


@dataclass(frozen=True)
class Figure:
    """One line of an estimate. `how` shows the arithmetic with its numbers; `unit` decides how the value is written."""

    key: str
    label: str
    value: float | int | str | None
    unit: str
    how: str = ""


@dataclass(frozen=True)
class Subject:
    """One output (a video or an image), its cost, and the rates of one GPU."""

    work: tuple[Figure, ...]  # where its FLOPs come from
    output_s: float  # seconds of video; 0: an image
    cost: e.OutputCost
    running: e.Running
    rate: str  # how the time was computed, in words

    @property
    def per_unit(self) -> e.OutputCost:
        return e.per_minute(self.cost, self.output_s) if self.output_s else self.cost


TOKENS = 1000  # of a language model's output that is compared with an image or a minute of video
ABOVE_0 = (
    "minutes_per_day", "drafts", "hours_per_month", "life_months", "flops_per_step", "flops_per_s", "psu_w",
    "num_steps",
)  # fmt: skip
NOT_BELOW_0 = (
    "output_s", "usd_per_kwh", "usd_per_gpu_hour", "cloud_usd_per_gpu_hour", "gpu_usd", "cpu_usd", "memory_usd",
    "storage_usd", "other_usd", "cpu_w", "other_w", "psu_reserve",
)  # fmt: skip


def estimate_problems(prices: EstimateConfig) -> list[str]:
    """Return problems with the configured numbers."""
    lines = [must_be_positive(f"estimate.{name}", getattr(prices, name)) for name in ABOVE_0]
    lines += [must_be_positive(f"estimate.{name}", getattr(prices, name), 0) for name in NOT_BELOW_0]
    lines += [must_be_positive("estimate.training_flops", flops) for flops in prices.training_flops]
    problems = [line for each in lines for line in each]
    if not 1 <= prices.peak_factor < math.inf:
        rule = "must be at least 1: it is the busiest hour over the mean hour"
        problems.append(f"estimate.peak_factor={prices.peak_factor} {rule}")
    if not 0 < prices.utilisation <= 1:
        problems.append(f"estimate.utilisation={prices.utilisation} must be more than 0 and at most 1")
    if prices.hours_per_month > e.HOURS_PER_MONTH:
        problems.append(f"estimate.hours_per_month={prices.hours_per_month} must be at most {e.HOURS_PER_MONTH:g}")
    if prices.flops_per_step is not None and (prices.num_steps is None or prices.output_s is None):
        problems.append("estimate.flops_per_step needs estimate.num_steps and estimate.output_s (0 for an image)")
    if prices.flops_per_step is None:
        instead = {"num_steps": "sampling.num_steps", "output_s": "video.num_frames", "flops_per_s": "hardware=CARD"}
        problems += [
            f"estimate.{name} is read only with estimate.flops_per_step; for a counted video use {other}"
            for name, other in instead.items()
            if getattr(prices, name) is not None
        ]
    others = prices.cpu_w + prices.other_w
    if prices.psu_w is not None and 0 < prices.psu_w <= others:
        problems.append(f"estimate.psu_w={prices.psu_w} leaves nothing for GPUs: CPU and other parts draw {others:g} W")
    return problems


def video_figures(subject: Subject) -> Iterator[Figure]:
    """Yield FLOPs, GPU-hours, energy and cost of one output, and of a minute of video."""
    cost, running = subject.cost, subject.running
    one = "video" if subject.output_s else "image"
    yield from subject.work
    yield Figure("gpu_hours", f"GPU-hours per {one}", cost.gpu_hours, "h", subject.rate)
    how = f"{_n(cost.gpu_hours)} h x {running.watts:.0f} W per GPU"
    yield Figure("kwh", f"energy per {one}", cost.kwh, "kWh", how)
    how = _money(f"{_n(cost.gpu_hours)} h x {running.usd_per_hour:.3f}", _n(cost.kwh), running)
    yield Figure("usd", f"cost per {one}", cost.usd, "USD", how)
    if not subject.output_s:
        how = f"1 / {_n(cost.gpu_hours)} h"
        yield Figure("images_per_gpu_hour", "images per GPU-hour", 1 / cost.gpu_hours, "", how)
        return
    minute = subject.per_unit
    times = f"x 60 / {subject.output_s:.4g} s"
    yield Figure("minute_flops", "FLOPs per minute of video", minute.flops, "FLOP", f"{cost.flops:.3e} {times}")
    how = f"{_n(cost.gpu_hours)} {times}"
    yield Figure("minute_gpu_hours", "GPU-hours per minute of video", minute.gpu_hours, "h", how)
    yield Figure("minute_kwh", "energy per minute of video", minute.kwh, "kWh", f"{_n(cost.kwh)} {times}")
    yield Figure("minute_usd", "cost per minute of video", minute.usd, "USD", f"{_n(cost.usd)} {times}")
    rate = e.minutes_per_gpu_hour(minute)
    yield Figure("minutes_per_gpu_hour", "minutes of video per GPU-hour", rate, "min", f"1 / {_n(minute.gpu_hours)} h")


def fleet_figures(subject: Subject, prices: EstimateConfig) -> Iterator[Figure]:
    """Yield the GPUs, energy and cost for a daily demand. The subject must be a video."""
    rate = e.minutes_per_gpu_hour(subject.per_unit)
    demand = e.Demand(prices.minutes_per_day, prices.drafts, prices.peak_factor, prices.utilisation)
    found = e.fleet(demand, rate, subject.running)
    day, running = e.HOURS_PER_DAY, subject.running
    yield Figure("minutes_per_gpu_hour", "minutes of video per GPU-hour", rate, "min", subject.rate)
    minutes = demand.minutes_per_day
    yield Figure("minutes_per_day", "finished minutes per day", minutes, "min", "estimate.minutes_per_day")
    how = f"{_n(demand.minutes_per_day)} / (24 x {rate:.3f})"
    yield Figure("gpus_at_mean", "GPUs at even demand, none idle", found.gpus_at_mean, "GPU", how)
    how = f"{found.gpus_at_mean:,.0f} x {demand.drafts:g} drafts x {demand.peak_factor:g} peak / {demand.utilisation:g}"
    yield Figure("gpus", "GPUs at the busiest hour", found.gpus, "GPU", f"{how} used, rounded up")
    how = f"{found.kwh_per_day / running.watts * 1000:,.0f} GPU-h x {running.watts:.0f} W"
    yield Figure("kwh_per_day", "energy per day", found.kwh_per_day, "kWh", how)
    how = _money(f"{found.gpus:,} x {day:g} h x {running.usd_per_hour:.3f}", f"{found.kwh_per_day:,.0f}", running)
    yield Figure("usd_per_day", "cost per day", found.usd_per_day, "USD", how)
    per = found.usd_per_day / demand.minutes_per_day
    yield Figure("usd_per_minute", "cost per finished minute", per, "USD", "cost per day / minutes per day")


def break_even_figures(subject: Subject, prices: EstimateConfig) -> Iterator[Figure]:
    """Compare training with inference, for each configured guess of the training's compute."""
    rate, each = subject.running.flops_per_s, subject.per_unit.flops
    one, units = ("a minute of video", "minutes of video") if subject.output_s else ("an image", "images")
    yield from subject.work
    if subject.output_s and subject.output_s != 60:
        yield Figure("minute_flops", "FLOPs per minute of video", each, "FLOP", f"x 60 / {subject.output_s:.4g} s")
    several = len(prices.training_flops) > 1
    for n, flops in enumerate(prices.training_flops, start=1):
        end = f" {n}" if several else ""
        months, outputs = e.gpu_months(flops, rate), e.outputs_to_break_even(flops, each)
        yield Figure(f"training_flops{end.strip()}", f"training{end}", flops, "FLOP", "estimate.training_flops")
        how = f"{flops:.3g} / ({rate:.4g} FLOP/s x 2.592e6 s)"
        yield Figure(f"gpu_months{end.strip()}", f"GPU-months of training{end}", months, "GPU", how)
        how = f"{flops:.3g} / {each:.4g}"
        yield Figure(f"outputs{end.strip()}", f"{units} until inference equals training{end}", outputs, "", how)
        for number, model in enumerate(e.LANGUAGE_MODELS):
            share, how = flops / model.training_flops, f"{flops:.3g} / {model.training_flops:.3g}, {model.source}"
            yield Figure(f"training{end.strip()}_llm{number}", f"training{end} / that of {model.name}", share, "x", how)
    for number, model in enumerate(e.LANGUAGE_MODELS):
        how = f"{each:.4g} / (2 x {model.parameters:.3g} x {TOKENS})"
        label = f"FLOPs of {one} / {TOKENS:,} tokens of {model.name}"
        yield Figure(f"output_llm{number}", label, each / (2 * model.parameters * TOKENS), "x", how)


def machine_figures(machine: Build, prices: EstimateConfig, *, priced: bool) -> Iterator[Figure]:
    """Yield power, supply, cooling and cost of a machine."""
    for n, (name, price) in enumerate(machine.parts_usd):
        known = priced or n > 0
        yield Figure(f"part{n}_usd", name, price if known else None, "USD", "" if known else "no published list price")
    if priced:
        yield Figure("price_usd", "total price", machine.price_usd, "USD", "sum of the parts")
    how = f"{machine.gpus} x {machine.gpu_w:.0f} + {machine.cpu_w:.0f} CPU + {machine.other_w:.0f} other"
    yield Figure("draw_w", "power draw at full load", machine.draw_w, "W", how)
    count, size_w = supplies(machine.draw_w, prices.psu_reserve)
    needed = machine.draw_w * (1 + prices.psu_reserve)
    how = f"{machine.draw_w:.0f} W + {prices.psu_reserve:.0%} = {needed:.0f} W; the next available size"
    yield Figure("psu", "power supply", f"{count} x {size_w} W", "", how)
    if prices.psu_w is not None:
        machine = replace(machine, gpu_w=gpu_cap_w(machine, prices.psu_w))
        yield Figure("psu_w", "existing power supply", prices.psu_w, "W", "estimate.psu_w")
        how = f"({prices.psu_w:.0f} - {machine.cpu_w:.0f} - {machine.other_w:.0f}) / {machine.gpus}, at most the TDP"
        yield Figure("gpu_cap_w", "power limit per GPU (nvidia-smi -pl)", machine.gpu_w, "W", how)
        how = f"{machine.gpus} x {machine.gpu_w:.0f} + {machine.cpu_w:.0f} + {machine.other_w:.0f}"
        yield Figure("capped_draw_w", "power draw with that limit", machine.draw_w, "W", how)
    heat = cooling(machine.draw_w)
    yield Figure("btu_per_hour", "heat", heat.btu_per_hour, "BTU/h", f"{machine.draw_w:.0f} W x 3.412")
    how = f"1.76 x {machine.draw_w:.0f} W / 10 K"
    yield Figure("airflow_cfm", "airflow for a rise of 10 K", heat.airflow_cfm, "CFM", how)
    yield Figure("circuit", "circuit", heat.circuit, "", "continuous load may reach 80% of its rating")
    hours = prices.hours_per_month
    money = purchase_or_cloud(machine, hours, prices.usd_per_kwh, prices.cloud_usd_per_gpu_hour * machine.gpus)
    how = f"{machine.draw_w / 1000:g} kW x {hours:g} h x {prices.usd_per_kwh}"
    yield Figure("power_usd_per_month", "electricity per month", money.power_usd_per_month, "USD", how)
    how = f"{machine.gpus} x {prices.cloud_usd_per_gpu_hour:g} per hour x {hours:g} h"
    yield Figure("cloud_usd_per_month", "rent of the same GPUs per month", money.cloud_usd_per_month, "USD", how)
    if priced:
        months = money.months_to_break_even
        how = f"{machine.price_usd:,.0f} / ({money.cloud_usd_per_month:,.0f} - {money.power_usd_per_month:,.0f})"
        value = "never" if months is None else months
        yield Figure("months_to_break_even", "buying is cheaper after", value, "months", how)


def _money(hire: str, kwh: str, running: e.Running) -> str:
    return f"{hire} + {kwh} kWh x {running.usd_per_kwh}" if running.usd_per_kwh else f"{hire}, electricity included"


def _n(value: float) -> str:
    return f"{value:,.4g}" if value < 1e4 else f"{value:.4g}" if value >= 1e6 else f"{value:,.0f}"
