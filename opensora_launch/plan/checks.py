"""Numbers of a topology and of a card that mean nothing, as lines to show. Pure."""

import math
from collections.abc import Iterator

from opensora_launch.cards import PCIE_GB_S
from opensora_launch.config import HardwareConfig, TopologyConfig


def topology_problems(topology: TopologyConfig) -> list[str]:
    """What is wrong with counts and links; null is for the launcher to find out."""
    counts = {name: getattr(topology, name) for name in ("nodes", "gpus_per_node")}
    problems = [f"topology.{name}={n} must be at least 1" for name, n in counts.items() if n is not None and n < 1]
    return problems + [
        line
        for name in ("link_gb_s", "node_link_gb_s")
        for line in must_be_positive(f"topology.{name}", getattr(topology, name))
    ]


def card_problems(card: HardwareConfig) -> list[str]:
    """What is wrong with the facts of a card that has a name; none of a card that is still to be found."""
    return list(_card_problems(card)) if card.name is not None else []


def must_be_positive(name: str, got: float | None, least: float | None = None) -> list[str]:
    """One line if a number is none, or not more than 0; with `least`, if it is below that. Null is right."""
    if got is None or (math.isfinite(got) and (got > 0 if least is None else got >= least)):
        return []
    return [f"{name}={got} must be {'more than 0' if least is None else f'at least {least:g}'}"]


def _card_problems(card: HardwareConfig) -> Iterator[str]:
    efficiencies = ("matmul_efficiency", "attention_efficiency", "link_efficiency")
    rates = ("bf16_tflops", "fp16_tflops", "fp8_tflops")
    for name in ("memory_gib", "bandwidth_gb_s", *rates, "nvlink_gb_s", *efficiencies):
        yield from must_be_positive(f"hardware.{name}", getattr(card, name))
    for name, least in (("tdp_w", 0), ("price_usd", 0), ("nvlink_gpus", 1)):
        yield from must_be_positive(f"hardware.{name}", getattr(card, name), least)
    if card.bf16_tflops is None and card.fp16_tflops is None:
        yield "hardware.bf16_tflops or hardware.fp16_tflops must be given: what the card computes a second"
    if card.pcie_generation not in PCIE_GB_S:
        known = ", ".join(map(str, PCIE_GB_S))
        yield f"hardware.pcie_generation={card.pcie_generation} is not known; use one of {known}"
