"""What is to be made, on what: all that the cost functions read. Pure."""

from collections import Counter
from dataclasses import dataclass

from opensora_launch.plan.memory import VideoSize
from opensora_launch.plan.networks import Network, Shape
from opensora_launch.schema.config import Engine, Fit, HardwareConfig, PlacementConfig, TopologyConfig


@dataclass(frozen=True)
class Work:
    """`steps` are (rows, how many steps have them) of a batch; `placement` is as it was asked for."""

    net: Network
    shape: Shape
    video: VideoSize
    steps: tuple[tuple[int, int], ...]
    batches: int
    videos: int
    ranks: int
    gpus_per_node: int
    element_bytes: int
    placement: PlacementConfig  # as it was asked for
    fit: Fit
    card: HardwareConfig
    topology: TopologyConfig
    engine: Engine = Engine.native

    @property
    def max_rows(self) -> int:
        return max(rows for rows, _ in self.steps)


def steps_of(rows: list[int]) -> tuple[tuple[int, int], ...]:
    """(rows, how many steps have them), for 1 row to the most."""
    counts = Counter(rows)
    return tuple((number, counts[number]) for number in range(1, max(rows, default=1) + 1))
