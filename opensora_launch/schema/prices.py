"""What an estimate reckons with: the part of the schema under `estimate`."""

from dataclasses import dataclass, field
from enum import StrEnum


class CardOrder(StrEnum):
    time = "time"
    cost = "cost"
    watts = "watts"
    memory = "memory"


@dataclass
class EstimateConfig:
    """What `opensora-launch estimate` reckons with; no other verb reads it. Money is US dollars."""

    network: str | None = None  # a public model that can be counted and not run; null: the run's own
    # Figures of a document in place of what is counted from the model, the video and the card; null counts.
    flops_per_step: float | None = None  # of one output, all its guidance rows
    num_steps: int | None = None
    output_s: float | None = None  # seconds of video in one output; 0 for an image
    flops_per_s: float | None = None  # that one GPU reaches
    training_flops: list[float] = field(default_factory=list)  # one or several guesses; none: no break-even
    minutes_per_day: float = 1000.0  # of finished video, for the fleet
    drafts: float = 1.0  # videos made for each that is kept
    peak_factor: float = 2.0  # the busiest hour over the mean hour
    utilisation: float = 0.7  # share of its reckoned speed that a GPU in service reaches
    usd_per_kwh: float = 0.17
    usd_per_gpu_hour: float | None = None  # rent; null: the machine's price spread over its life
    cloud_usd_per_gpu_hour: float = 2.0  # what a purchase is held against
    life_months: float = 36.0
    hours_per_month: float = 720.0  # that the machine works
    gpu_usd: float | None = None  # null: the list price of the catalogue
    cpu_usd: float = 800.0  # with its mainboard
    memory_usd: float = 400.0
    storage_usd: float = 300.0
    other_usd: float = 800.0
    cpu_w: float = 250.0
    other_w: float = 200.0
    psu_reserve: float = 0.2  # over the draw, for peaks of milliseconds and for age
    psu_w: float | None = None  # a supply that is there: what the GPUs must be limited to
    card_order: CardOrder = CardOrder.time
