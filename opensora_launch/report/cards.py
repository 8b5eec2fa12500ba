"""Peak rates of the card that a run was on, from `configs/hardware/`. What is not in its data sheet is None."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import opensora_launch

PCIE_BYTES_PER_S = {3: 16e9, 4: 32e9, 5: 64e9, 6: 128e9}  # 16 lanes, one way, by generation


@dataclass(frozen=True)
class Card:
    name: str
    flops_per_s: Mapping[str, float]  # by precision; dense
    nvlink_bytes_per_s: float | None  # one way
    nvlink_gpus: int
    pcie_bytes_per_s: float | None

    def link_bytes_per_s(self, ranks: int) -> float | None:
        """Of the link between so many GPUs of one node, one way."""
        return self.nvlink_bytes_per_s if ranks <= self.nvlink_gpus else self.pcie_bytes_per_s


def find_card(device_name: str) -> Card | None:
    """The card whose NVML name is in `device_name`, the longest name first; None for CPUs and cards not listed."""
    import yaml

    package = Path(opensora_launch.__file__).resolve().parent
    folders = [package / "configs" / "hardware", package.parent / "configs" / "hardware"]
    known: list[dict[str, Any]] = [
        data
        for folder in folders
        for file in sorted(folder.glob("*.yaml"))
        if (data := yaml.safe_load(file.read_text(encoding="utf-8"))) and data.get("nvml_names")
    ]
    names = sorted(((name, data) for data in known for name in data["nvml_names"]), key=lambda found: -len(found[0]))
    return next((_card(data) for name, data in names if name in device_name), None)


def _card(data: Mapping[str, Any]) -> Card:
    rates = {name.removesuffix("_tflops"): data[name] * 1e12 for name in ("bf16_tflops", "fp16_tflops") if data[name]}
    nvlink = data.get("nvlink_gb_s")
    return Card(
        name=data["name"],
        flops_per_s=rates,
        nvlink_bytes_per_s=nvlink * 1e9 if nvlink else None,
        nvlink_gpus=data.get("nvlink_gpus") or 0,
        pcie_bytes_per_s=PCIE_BYTES_PER_S.get(data.get("pcie_generation") or 0),
    )
