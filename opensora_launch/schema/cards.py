"""GPU cards: the schema of the `hardware` group, which configs/hardware/*.yaml fill."""

from dataclasses import replace

from opensora_launch.schema.settings import key, settings

# Efficiency of a card for which none was fitted: the share of its peak up to EFFICIENT_TFLOPS. Larger cards reach less.
EFFICIENCY, EFFICIENT_TFLOPS = 0.8, 300.0
LINK_EFFICIENCY = {"nvlink": 0.444, "pcie": 0.586}
PCIE_GB_S = {1: 4.0, 2: 8.0, 3: 15.75, 4: 31.5, 5: 63.0, 6: 121.0}  # per generation: 16 lanes, one way


@settings
class Card:
    """A card; `name` null stands for the one that NVML finds.

    Rates are for dense products, one way, in decimal units; memory is in binary units.
    """

    name: str | None = key(None, "of the card; null: the one that NVML finds")
    nvml_names: list[str] = key([], "names that the driver uses for it")
    memory_gib: float = key(0.0, "memory, as the driver reports it")
    bandwidth_gb_s: float = key(0.0, "bandwidth of the memory")
    bf16_tflops: float | None = key(None, "dense products; null: the card does not support it")
    fp16_tflops: float | None = key(None, "dense products; null: the card does not support it")
    fp8_tflops: float | None = key(None, "dense products; null: the card does not support it")
    tf32_tflops: float | None = key(None, "dense products; null: the card does not support it")
    fp32_tflops: float | None = key(None, "dense products without tensor cores")
    nvlink_gb_s: float | None = key(None, "NVLink one way, sum over all peers; null: none")
    nvlink_gpus: int = key(1, "number of GPUs connected by NVLink: 2 with a bridge")
    pcie_generation: int = key(4, "generation of its slot")
    pcie_lanes: int = key(16, "lanes of its slot")
    tdp_w: float = key(0.0, "power limit")
    form_factor: str = key("", "how it is mounted: SXM, PCIe")
    price_usd: float | None = key(None, "list price at launch")
    matmul_efficiency: float | None = key(
        None, "share of its rate in products, fitted to published tables; null: a rule"
    )
    attention_efficiency: float | None = key(None, "share of its rate in attention, fitted likewise; null: a rule")
    link_efficiency: float | None = key(None, "share of its link's bandwidth, fitted likewise; null: a rule")
    mixed: list[str] = key([], "other cards in each node; the slowest card sets the pace")
    others: list["Card"] = key([], "their facts, which the launcher fills in")

    @property
    def known(self) -> bool:
        return self.name is not None and self.memory_gib > 0

    @property
    def half_tflops(self) -> float:
        """The bf16 rate, or the fp16 rate if the card has no bf16."""
        return self.bf16_tflops or self.fp16_tflops or 0.0

    @property
    def pcie_gb_s(self) -> float:
        """The rate of its slot, one way."""
        return PCIE_GB_S[self.pcie_generation] * self.pcie_lanes / 16

    @property
    def pcie_text(self) -> str:
        """Its slot in words: "PCIe 4", "PCIe 3 x8"."""
        lanes = f" x{self.pcie_lanes}" if self.pcie_lanes != 16 else ""
        return f"PCIe {self.pcie_generation}{lanes}"

    @property
    def each(self) -> tuple["Card", ...]:
        """The unlike cards of a node: this one and the others."""
        return (self, *self.others)

    @property
    def has_bf16(self) -> bool:
        return all(card.bf16_tflops is not None for card in self.each)

    def tflops(self, products: str) -> float | None:
        """Return the peak in "bf16", "fp16", "tf32" or "fp32" products; None if the card has none, or if it is unknown.

        Cards without TF32 compute it as fp32.
        """
        if products == "tf32":
            return self.tf32_tflops or self.fp32_tflops
        return {"bf16": self.bf16_tflops, "fp16": self.fp16_tflops, "fp32": self.fp32_tflops}[products]


def default_efficiency(tflops: float) -> float:
    """Return the share of its peak that a card reaches in products and attention if none was fitted."""
    return EFFICIENCY * float(min(1.0, (EFFICIENT_TFLOPS / tflops) ** 0.25))


def joined(cards: list[Card]) -> Card:
    """Describe unlike cards of one node as one card with `others`.

    They have equal shares, so the smallest sets the memory limit. Unlike cards have no NVLink between them.
    """
    if len(cards) == 1:
        return cards[0]
    first, *others = (  # by PCIe; the share of NVLink that a card reaches goes with it
        card if card.nvlink_gb_s is None else replace(card, nvlink_gb_s=None, nvlink_gpus=1, link_efficiency=None)
        for card in cards
    )
    prices = [card.price_usd for card in cards if card.price_usd is not None]
    return replace(
        first,
        name="+".join(str(card.name) for card in cards),
        memory_gib=min(card.memory_gib for card in cards),
        tdp_w=sum(card.tdp_w for card in cards) / len(cards),
        price_usd=sum(prices) / len(cards) if len(prices) == len(cards) else None,
        others=others,
    )
