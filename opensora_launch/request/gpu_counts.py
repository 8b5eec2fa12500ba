"""Counts of GPUs as `plan` and `bench` take them: gpus=[1,2,4,2x8]."""

import re
from dataclasses import dataclass

from opensora_launch.errors import UserError

_COUNT = r"\d+(?:x\d+)?"


@dataclass(frozen=True)
class GpuCount:
    nodes: int
    per_node: int

    @property
    def overrides(self) -> tuple[str, str]:
        return f"topology.nodes={self.nodes}", f"topology.gpus_per_node={self.per_node}"


def read_counts(text: str) -> tuple[GpuCount, ...]:
    """The counts that a text lists. Raises UserError for another text."""
    pairs = [found.rpartition("x") for found in re.findall(_COUNT, text)]
    counts = tuple(GpuCount(int(nodes or 1), int(per_node)) for nodes, _, per_node in pairs)
    listed = re.fullmatch(rf"\[?{_COUNT}(,{_COUNT})*\]?", text)
    if not listed or any(count.nodes < 1 or count.per_node < 1 for count in counts):
        raise UserError(f"gpus={text} must be counts of GPUs, such as [1,2,4,2x8]; 2x8 is nodes x GPUs")
    return counts
