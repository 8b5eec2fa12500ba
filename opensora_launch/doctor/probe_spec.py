"""What `doctor` asks of the ranks, and what they answer: probe.json in a folder of its own."""

from dataclasses import asdict, dataclass
from typing import Any, cast

from opensora_launch.plan.codec import decode
from opensora_launch.plan.layout import Layout


@dataclass(frozen=True)
class ProbeSpec:
    """Send `nbytes` a rank along each axis of the layout, `repeats` times."""

    device: str  # "cpu" or "cuda"
    layout: Layout
    threads_per_rank: int
    nbytes: int
    repeats: int
    timeout_s: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ProbeSpec":
        return cast(ProbeSpec, decode(cls, data))


@dataclass(frozen=True)
class RankSeen:
    """Where a rank came up. `clock_ahead_s` is its host's wall clock less rank 0's; None where not measured."""

    rank: int
    host: str
    gpu: str | None  # UUID
    cpus: int
    clock_ahead_s: float | None


@dataclass(frozen=True)
class AxisSpeed:
    """The slowest rank's median: bytes that it sent to others, over the time of the exchange."""

    axis: str
    op: str
    ranks: int
    sent_bytes: int  # by each rank, each time
    seconds: float

    @property
    def gb_s(self) -> float:
        return self.sent_bytes / self.seconds / 1e9


@dataclass(frozen=True)
class ProbeResult:
    ranks: tuple[RankSeen, ...]
    speeds: tuple[AxisSpeed, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ProbeResult":
        return cast(ProbeResult, decode(cls, data))
