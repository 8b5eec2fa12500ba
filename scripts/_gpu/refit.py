"""Compute the planner's constants from the results of a campaign, and print them beside the ones that it has."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from _gpu.setting import LARGE, SMALL, Setting, place_of
from _gpu.step import OTHERS, step_load
from _gpu.summary import Results, read_results
from opensora_launch.plan.costs import BF16
from opensora_launch.plan.memory import FRAGMENTS, USABLE
from opensora_launch.plan.set_aside import RESERVED_BYTES
from opensora_launch.plan.times import (
    MEMORY_EFFICIENCY,
    VAE_EFFICIENCY,
    Rates,
    rates_of,
    step_counts,
    step_time,
)
from opensora_launch.request.catalogue import read_cards
from opensora_launch.schema.cards import LINK_EFFICIENCY, Card, default_efficiency
from opensora_launch.schema.config import TopologyConfig

SEEN = 0.02  # of a step: a transfer that costs less shows only how much is hidden at least
ELEMENTWISE = (OTHERS, "copies")  # kinds of kernels, as the planner counts them


@dataclass(frozen=True)
class Constant:
    """A constant as measured, as the planner has it, and where it stands. `why`: the measurement."""

    name: str
    place: str
    new: float
    old: float
    why: str

    def line(self) -> str:
        return f"{self.name}: {self.new:.4g}  # was {self.old:.4g}; {self.why}"


def refit(out: Path) -> str:
    """Return YAML to paste: the card's own constants, then those of all cards as comments, with the old values."""
    results = read_results(out)
    machine = next((found["machine"] for found in results.values() if "machine" in found), None)
    if machine is None:
        return f"# no results in {out}"
    card = read_cards().get(str(machine["card"]))
    if card is None:
        name = machine["gpu"] or machine["card"]
        return f"# {name} is not in configs/hardware: add its data sheet first, as CONTRIBUTING.md says"
    return "\n".join(_lines(results, machine, card))


def _lines(results: Results, machine: Mapping[str, Any], card: Card) -> Iterator[str]:
    if any(found.get("size") != "full" for found in results.values()):
        yield "# A rehearsal at tiny size: do not paste these numbers."
    own, shared = list(card_constants(results, card)), list(shared_constants(results, card))
    yield f"# configs/hardware/{card.name}.yaml: measured by scripts/gpu_campaign on {place_of(machine)}"
    yield from (constant.line() for constant in own)
    missing = {"matmul_efficiency", "attention_efficiency"} - {constant.name for constant in own}
    yield from (f"# {name}: not measured; the item `step` gives it" for name in sorted(missing))
    yield f"# link_efficiency: {card.link_efficiency}: needs two GPUs"
    yield "# Of all cards, in Python. Another card may say otherwise: change them when several agree."
    yield from (f"# {constant.place}: {constant.line()}" for constant in shared)
    yield from scores(results, card, [*own, *shared])


def _point(results: Results, item: str, name: str) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = results.get(item, {}).get("points", {}).get(name)
    return None if found is None or "error" in found else found


def card_constants(results: Results, card: Card) -> Iterator[Constant]:
    """Yield the shares of its peak that this card reaches inside a step, from the profile by kernel kind."""
    kinds = (_point(results, "step", "kinds") or {}).get("kinds", {})
    peak = card.half_tflops
    place = f"configs/hardware/{card.name}.yaml"
    for name, kind, old in (
        ("matmul_efficiency", "products", card.matmul_efficiency),
        ("attention_efficiency", "attention", card.attention_efficiency),
    ):
        if kind in kinds:
            tflops = kinds[kind]["tflops"]
            why = f"{tflops:.0f} of {peak:.0f} TFLOP/s in a step"
            yield Constant(name, place, tflops / peak, old or default_efficiency(peak), why)


def shared_constants(results: Results, card: Card) -> Iterator[Constant]:
    """Yield the constants of all cards, as this one shows them."""
    times, memory = "opensora_launch/plan/times.py", "opensora_launch/plan/memory.py"
    if profile := _point(results, "step", "kinds"):
        seconds = sum(profile["kinds"][kind]["s"] for kind in ELEMENTWISE if kind in profile["kinds"])
        share = profile["elementwise_bytes"] / seconds / (card.bandwidth_gb_s * 1e9)
        yield Constant("MEMORY_EFFICIENCY", times, share, MEMORY_EFFICIENCY, "kernels between the products of a step")
    if launch := _point(results, "step", "launch"):
        why = f"a step of {launch['tokens']} tokens"
        yield Constant("block_launch_s", times, launch["per_block_s"], Rates.block_launch_s, why)
    if decode := _point(results, "vae", "decode"):
        share = decode["planned_flops_per_s"] / (card.half_tflops * 1e12)
        yield Constant("VAE_EFFICIENCY", times, share, VAE_EFFICIENCY, "the largest tile of a 768px video")
    if copies := _point(results, "ceilings", "copies"):
        share = copies["to the device, pinned"]["gb_s"] / card.pcie_gb_s
        why = "pinned copies to the GPU; the planner takes it between GPUs too"
        yield Constant("LINK_EFFICIENCY[pcie]", "opensora_launch/schema/cards.py", share, LINK_EFFICIENCY["pcie"], why)
    hidden = list(_copies_hidden(results))
    if hidden:
        yield Constant("copy_hidden", times, min(hidden), Rates.copy_hidden, "offloaded steps under a cap")
    if aside := _point(results, "memory", "set aside"):
        stages = [nbytes for nbytes in aside["outside_bytes"].values() if nbytes is not None]
        if stages:
            yield Constant(
                "RESERVED_BYTES",
                "opensora_launch/plan/set_aside.py",
                max(stages),
                RESERVED_BYTES,
                "context, NCCL alone and libraries",
            )
        if aside["usable_share"]:
            yield Constant("USABLE", memory, aside["usable_share"], USABLE, "CUDA's total of NVML's")
    if rows := _point(results, "step", "rows"):
        held = [rows[n]["reserved_bytes"] / rows[n]["allocated_bytes"] for n in "123" if rows[n]["allocated_bytes"]]
        if held:
            yield Constant("FRAGMENTS", memory, max(held), FRAGMENTS, "held by the allocator in a step")


def _copies_hidden(results: Results) -> Iterator[float]:
    """Yield the share of compute that hides copies, from each offloaded step to which the copies added time."""
    for point in results.get("offload", {}).get("points", {}).values():
        for video in (LARGE, SMALL):
            step = point.get(video)
            if step and step["exposed_s"] > SEEN * step["whole_s"]["median"]:
                yield max(0.0, (point["transfer_s"]["median"] - step["exposed_s"]) / step["whole_s"]["median"])


def scores(results: Results, card: Card, constants: list[Constant]) -> Iterator[str]:
    """Yield the seconds of a step as measured, as predicted, and as predicted with the new constants."""
    rows, size = _point(results, "step", "rows"), results.get("step", {}).get("size")
    if rows is None or size is None:
        return
    before = rates_of(card, TopologyConfig(gpus_per_node=1), "bf16" if card.bf16_tflops else "fp16")
    after = with_constants(before, card, {constant.name: constant.new for constant in constants})
    yield "# Seconds of a step: measured, predicted (error), predicted with the constants above (error)"
    for count in (1, 2, 3):
        measured = rows[str(count)]["s"]["median"]
        old, new = (_step_s(str(size), count, rates) for rates in (before, after))
        errors = [f"{x:.3g} ({x / measured - 1:+.1%})" for x in (old, new)]
        yield f"#   rows: {count}   {measured:.3g}   {'   '.join(errors)}"


def with_constants(rates: Rates, card: Card, new: Mapping[str, float]) -> Rates:
    """Return the rates of a card with the constants that were measured."""
    peak = card.half_tflops * 1e12
    changed = {
        "matmul_flops": new.get("matmul_efficiency", rates.matmul_flops / peak) * peak,
        "attention_flops": new.get("attention_efficiency", rates.attention_flops / peak) * peak,
        "block_launch_s": new.get("block_launch_s", rates.block_launch_s),
        "copy_hidden": new.get("copy_hidden", rates.copy_hidden),
    }
    if "MEMORY_EFFICIENCY" in new:
        changed["memory_bytes"] = card.bandwidth_gb_s * 1e9 * new["MEMORY_EFFICIENCY"]
    return replace(rates, **changed)


def _step_s(size: str, rows: int, rates: Rates) -> float:
    return step_time(step_counts(step_load(Setting(torch.device("cpu"), size), rows, BF16)), rates).total
