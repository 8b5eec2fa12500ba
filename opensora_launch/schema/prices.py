"""Prices and demand for estimates: the part of the schema under `estimate`."""

from enum import StrEnum

from opensora_launch.schema.settings import key, settings

CardOrder = StrEnum("CardOrder", ["time", "cost", "watts", "memory"])


@settings
class EstimateConfig:
    """Inputs of `opensora-launch estimate`; a run's report reads `usd_per_gpu_hour`. Money is in US dollars."""

    network: str | None = key(None, "a public model; it need not be runnable; null: the run's own model")
    # Figures from a document, used instead of counting them from the model, the video and the card; null: count them.
    flops_per_step: float | None = key(None, "of a document, for one output, all guidance rows together; null: counted")
    num_steps: int | None = key(None, "of a document; null: sampling.num_steps")
    output_s: float | None = key(None, "of a document: length of one output; 0: an image; null: counted")
    flops_per_s: float | None = key(None, "of a document: rate that one GPU reaches; null: predicted")
    training_flops: list[float] = key([], "one or more guesses; empty: no break-even")
    minutes_per_day: float = key(1000.0, "finished video that the fleet must produce")
    drafts: float = key(1.0, "videos generated per video that is kept")
    peak_factor: float = key(2.0, "load of the busiest hour divided by the mean hour")
    utilisation: float = key(0.7, "share of the estimated speed that a GPU reaches in service")
    usd_per_kwh: float = key(0.17, "price of electricity")
    usd_per_gpu_hour: float | None = key(None, "rent; null: the machine's price spread over its lifetime")
    cloud_usd_per_gpu_hour: float = key(2.0, "rent that a purchase is compared with")
    life_months: float = key(36.0, "time in which a purchase is written off")
    hours_per_month: float = key(720.0, "hours of operation")
    gpu_usd: float | None = key(None, "price of a GPU; null: the list price in the catalogue")
    cpu_usd: float = key(800.0, "price of CPU and mainboard")
    memory_usd: float = key(400.0, "price of the memory")
    storage_usd: float = key(300.0, "price of the disks")
    other_usd: float = key(800.0, "price of everything else")
    cpu_w: float = key(250.0, "draw of the CPU")
    other_w: float = key(200.0, "draw of everything else")
    psu_reserve: float = key(0.2, "capacity above the power draw, for millisecond peaks and ageing")
    psu_w: float | None = key(None, "an existing power supply; the GPUs are limited to what it can deliver")
    card_order: CardOrder = key(CardOrder.time, "order of the cards that fit")
