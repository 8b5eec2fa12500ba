"""GPU cards: the schema of the `hardware` group, which configs/hardware/*.yaml fill."""

from dataclasses import field, fields
from typing import Any

from opensora_launch.schema.settings import settings

# Efficiency of a card for which none was fitted: the share of its peak up to EFFICIENT_TFLOPS. Larger cards reach less.
EFFICIENCY, EFFICIENT_TFLOPS = 0.8, 300.0
LINK_EFFICIENCY = {"nvlink": 0.45, "pcie": 0.629}
PCIE_GB_S = {3: 15.75, 4: 31.5, 5: 63.0, 6: 121.0}  # per generation: 16 lanes, one way


@settings
class Card:
    """A card; `name` null stands for the one that NVML finds.

    Rates are for dense products, one way, in decimal units; memory is in binary units.
    """

    name: str | None = None
    nvml_names: list[str] = field(default_factory=list)  # names that the driver uses for it
    memory_gib: float = 0.0
    bandwidth_gb_s: float = 0.0
    bf16_tflops: float | None = None  # null: the card does not support it
    fp16_tflops: float | None = None
    fp8_tflops: float | None = None
    nvlink_gb_s: float | None = None  # sum over all peers
    nvlink_gpus: int = 1  # number of GPUs connected by NVLink: 2 with a bridge
    pcie_generation: int = 4
    tdp_w: float = 0.0
    form_factor: str = ""
    price_usd: float | None = None  # list price at launch
    # Fitted to published tables (docs/prediction.md); null: the general rule (`default_efficiency`)
    matmul_efficiency: float | None = None
    attention_efficiency: float | None = None
    link_efficiency: float | None = None
    mixed: list[str] = field(default_factory=list)  # other cards in each node; the slowest card sets the pace

    @property
    def known(self) -> bool:
        return self.name is not None and self.memory_gib > 0

    @property
    def half_tflops(self) -> float:
        """The bf16 rate, or the fp16 rate if the card has no bf16."""
        return self.bf16_tflops or self.fp16_tflops or 0.0


def default_efficiency(tflops: float) -> float:
    """Return the share of its peak that a card reaches in products and attention if none was fitted."""
    return EFFICIENCY * float(min(1.0, (EFFICIENT_TFLOPS / tflops) ** 0.25))


def slowest(cards: list[Card]) -> Card:
    """Merge cards into one that is no better than any of them: all do equal shares, so the slowest sets the pace."""
    first = cards[0]
    if len(cards) == 1:
        return first
    merged: dict[str, Any] = {"name": "+".join(str(card.name) for card in cards), "form_factor": first.form_factor}
    for name in (item.name for item in fields(Card)):
        values = [getattr(card, name) for card in cards]
        if name in ("tdp_w", "price_usd"):
            merged[name] = None if None in values else sum(values) / len(values)
        elif name not in ("name", "nvml_names", "mixed", "form_factor"):
            merged[name] = None if None in values else min(values)
    merged["nvlink_gpus"] = first.nvlink_gpus if merged["nvlink_gb_s"] else 1
    return Card(**merged)
