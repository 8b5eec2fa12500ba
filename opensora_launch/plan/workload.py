"""The workload that the cost functions read: what is made, and on which machine. Pure."""

from collections import Counter
from dataclasses import dataclass

from opensora_launch.plan.networks import Network, TokenGrid
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Engine, Fit, PlacementConfig, TopologyConfig


@dataclass(frozen=True)
class Workload:
    """Videos to make and the machine to make them on. `steps` are (rows, number of such steps) of one batch."""

    net: Network
    grid: TokenGrid
    video: VideoSize
    steps: tuple[tuple[int, int], ...]
    batches: int
    videos: int
    ranks: int
    gpus_per_node: int
    products: str  # the type of the matrix products: bf16, fp16, tf32 or fp32
    placement: PlacementConfig  # as configured
    fit: Fit
    card: Card
    topology: TopologyConfig
    engine: Engine = Engine.native
    compiled: bool = False
    overlap: bool = False  # allowed, where it saves time
    approximate: tuple[str, ...] = ()  # settings of the steps that change the video by more than rounding
    images: "Workload | None" = None  # of the image stage before it, whose machine is this one

    @property
    def element_bytes(self) -> int:
        return 2 if self.products in ("bf16", "fp16") else 4

    @property
    def max_rows(self) -> int:
        return max(rows for rows, _ in self.steps)


def steps_of(rows: list[int]) -> tuple[tuple[int, int], ...]:
    """Count steps: (rows, number of steps with so many rows), from 1 row to the most."""
    counts = Counter(rows)
    return tuple((number, counts[number]) for number in range(1, max(rows, default=1) + 1))
