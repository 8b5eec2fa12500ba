"""Facts of a GPU card, as configs/hardware/*.yaml give them: the schema of the `hardware` group."""

from dataclasses import dataclass, field, fields

EFFICIENCY, EFFICIENT_TFLOPS = 0.8, 300.0  # of a card whose own was not fitted; larger cards reach less of their peak
LINK_EFFICIENCY = {"nvlink": 0.45, "pcie": 0.629}
PCIE_GB_S = {3: 15.75, 4: 31.5, 5: 63.0, 6: 121.0}  # of 16 lanes, one way


@dataclass
class HardwareConfig:
    """A card, or `name` null: the one that NVML finds. Rates are dense, one way, decimal; memory is binary."""

    name: str | None = None
    nvml_names: list[str] = field(default_factory=list)  # what the driver calls it
    memory_gib: float = 0.0
    bandwidth_gb_s: float = 0.0
    bf16_tflops: float | None = None  # null: the card cannot
    fp16_tflops: float | None = None
    fp8_tflops: float | None = None
    nvlink_gb_s: float | None = None  # to all peers together
    nvlink_gpus: int = 1  # that reach one another by NVLink: 2 with a bridge
    pcie_generation: int = 4
    tdp_w: float = 0.0
    form_factor: str = ""
    price_usd: float | None = None  # list price at launch
    # What was fitted to published tables (docs/prediction.md); null: the general rule
    matmul_efficiency: float | None = None
    attention_efficiency: float | None = None
    link_efficiency: float | None = None
    mixed: list[str] = field(default_factory=list)  # other cards in each node; the slowest sets the pace

    @property
    def known(self) -> bool:
        return self.name is not None and self.memory_gib > 0

    @property
    def half_tflops(self) -> float:
        """bf16, or fp16 where there is no bf16."""
        return self.bf16_tflops or self.fp16_tflops or 0.0


def default_efficiency(tflops: float) -> float:
    """Share of its peak that a card reaches in products and attention, where nothing was fitted."""
    return EFFICIENCY * float(min(1.0, (EFFICIENT_TFLOPS / tflops) ** 0.25))


def slowest(cards: list[HardwareConfig]) -> HardwareConfig:
    """One card that is no better than any of `cards`: shares are equal, so the slowest sets the pace."""
    first = cards[0]
    if len(cards) == 1:
        return first
    merged = HardwareConfig(name="+".join(str(card.name) for card in cards), form_factor=first.form_factor)
    for item in fields(HardwareConfig):
        values = [getattr(card, item.name) for card in cards]
        if item.name in ("name", "nvml_names", "mixed", "form_factor"):
            continue
        if item.name == "tdp_w":
            merged.tdp_w = sum(values) / len(values)
        elif item.name == "price_usd":
            merged.price_usd = None if None in values else sum(values) / len(values)
        else:
            setattr(merged, item.name, None if None in values else min(values))
    merged.nvlink_gpus = first.nvlink_gpus if merged.nvlink_gb_s else 1
    return merged
