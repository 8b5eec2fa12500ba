"""The request of `doctor` to its test ranks (spec.json), and their measurements (probe.json)."""

from dataclasses import dataclass

from opensora_launch.plan.layout import Layout


@dataclass(frozen=True)
class ProbeSpec:
    """Send `nbytes` per rank along each axis of the layout, `repeats` times."""

    device: str  # "cpu" or "cuda"
    layout: Layout
    threads_per_rank: int
    nbytes: int
    repeats: int
    timeout_s: float


@dataclass(frozen=True)
class RankSeen:
    """Where a rank started. `clock_ahead_s` is its host's wall clock minus rank 0's; None if not measured."""

    rank: int
    host: str
    gpu: str | None  # UUID
    cpus: int
    clock_ahead_s: float | None


@dataclass(frozen=True)
class AxisSpeed:
    """The median of the slowest rank: bytes that it sent to others, and the time of the exchange."""

    axis: str
    op: str
    ranks: int
    sent_bytes: int  # by each rank, in each exchange
    seconds: float

    @property
    def gb_s(self) -> float:
        return self.sent_bytes / self.seconds / 1e9


@dataclass(frozen=True)
class ProbeResult:
    ranks: tuple[RankSeen, ...]
    speeds: tuple[AxisSpeed, ...]
