"""Prices and demand for estimates: the part of the schema under `estimate`."""

from dataclasses import field
from enum import StrEnum

from opensora_launch.schema.settings import settings


class CardOrder(StrEnum):
    time = "time"
    cost = "cost"
    watts = "watts"
    memory = "memory"


@settings
class EstimateConfig:
    """Inputs of `opensora-launch estimate`; a run's report reads `usd_per_gpu_hour`. Money is in US dollars."""

    network: str | None = None  # a public model to estimate; it need not be runnable; null: the run's own model
    # Figures from a document, used instead of counting them from the model, the video and the card; null: count them.
    flops_per_step: float | None = None  # for one output, all guidance rows together
    num_steps: int | None = None
    output_s: float | None = None  # seconds of video in one output; 0: an image
    flops_per_s: float | None = None  # rate that one GPU reaches
    training_flops: list[float] = field(default_factory=list)  # one or more guesses; empty: no break-even
    minutes_per_day: float = 1000.0  # finished video that the fleet must produce
    drafts: float = 1.0  # videos generated per video that is kept
    peak_factor: float = 2.0  # load of the busiest hour divided by the mean hour
    utilisation: float = 0.7  # share of the estimated speed that a GPU reaches in service
    usd_per_kwh: float = 0.17
    usd_per_gpu_hour: float | None = None  # rent; null: the machine's price spread over its lifetime
    cloud_usd_per_gpu_hour: float = 2.0  # rent that a purchase is compared with
    life_months: float = 36.0
    hours_per_month: float = 720.0  # hours of operation
    gpu_usd: float | None = None  # null: the list price in the catalogue
    cpu_usd: float = 800.0  # including the mainboard
    memory_usd: float = 400.0
    storage_usd: float = 300.0
    other_usd: float = 800.0
    cpu_w: float = 250.0
    other_w: float = 200.0
    psu_reserve: float = 0.2  # capacity above the power draw, for millisecond peaks and ageing
    psu_w: float | None = None  # an existing power supply; the GPUs are then limited to what it can deliver
    card_order: CardOrder = CardOrder.time
