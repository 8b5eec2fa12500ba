"""Peak rates of the card that a run was on, from the run's own config.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from opensora_launch.schema.cards import PCIE_GB_S, Card
from opensora_launch.schema.config import RunConfig


@dataclass(frozen=True)
class CardPeaks:
    """Rates one way and dense; None is not known."""

    name: str
    flops_per_s: Mapping[str, float]  # by precision
    nvlink_bytes_per_s: float | None
    nvlink_gpus: int
    pcie_bytes_per_s: float | None

    def link_bytes_per_s(self, ranks: int) -> float | None:
        """Of the link between so many GPUs of one node."""
        return self.nvlink_bytes_per_s if ranks <= self.nvlink_gpus else self.pcie_bytes_per_s


def read_config(run_dir: Path) -> RunConfig | None:
    """The config that the run was made from; None where there is none that this version reads."""
    import yaml

    try:
        data = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        return msgspec.convert(data, RunConfig)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        return None


def card_of(config: RunConfig | None) -> CardPeaks | None:
    """None on CPUs and for cards that are not in configs/hardware."""
    if config is None or not config.hardware.known:
        return None
    card: Card = config.hardware
    rates = {"bf16": card.bf16_tflops, "fp16": card.fp16_tflops}
    nvlink, pcie = card.nvlink_gb_s, PCIE_GB_S.get(card.pcie_generation)
    return CardPeaks(
        name=str(card.name),
        flops_per_s={precision: rate * 1e12 for precision, rate in rates.items() if rate},
        nvlink_bytes_per_s=nvlink * 1e9 if nvlink else None,
        nvlink_gpus=card.nvlink_gpus,
        pcie_bytes_per_s=pcie * 1e9 if pcie else None,
    )
