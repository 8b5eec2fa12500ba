"""The cost of videos: GPU time, energy, money, fleets, and training compared with inference.

Arithmetic only. FLOPs come from the cost functions or from a document. docs/estimate.md shows every formula with its
source and the published figures that it reproduces.
"""

import math
from dataclasses import dataclass

SECONDS_PER_HOUR, HOURS_PER_DAY, DAYS_PER_MONTH = 3600.0, 24.0, 30.0
HOURS_PER_MONTH = HOURS_PER_DAY * DAYS_PER_MONTH


@dataclass(frozen=True)
class LanguageModel:
    """A language model to compare with. A token takes 2 FLOPs per parameter that it uses."""

    name: str
    parameters: float  # that a token uses
    training_flops: float
    source: str


# GPT-4 is a guess that OpenAI has not confirmed: two experts of 220e9 parameters per token, as Factorial Funds assumes;
# its training as Epoch AI estimates it. Llama 2: 6 x parameters x 2e12 tokens (Touvron et al. 2023).
LANGUAGE_MODELS = (
    LanguageModel("Llama 2 70B", 70e9, 8.4e23, "6 x 70e9 x 2e12 tokens"),
    LanguageModel("GPT-4 (a guess)", 440e9, 2.1e25, "Epoch AI"),
)


@dataclass(frozen=True)
class Running:
    """Rates of one GPU of a busy machine."""

    flops_per_s: float  # what it reaches, not its peak
    watts: float  # at the wall, including its share of the machine and of cooling
    usd_per_hour: float  # rent, or the price spread over the lifetime
    usd_per_kwh: float  # of electricity that `usd_per_hour` does not include; 0: it includes all


@dataclass(frozen=True)
class OutputCost:
    """Cost of one video, or of one minute of video."""

    flops: float
    gpu_hours: float
    kwh: float
    usd: float


def flops_of_steps(flops_per_step: float, steps: int) -> float:
    """Return the FLOPs of one denoised output: steps x FLOPs per step. A step is one forward of all guidance rows."""
    return flops_per_step * steps


def cost_of(gpu_hours: float, flops: float, running: Running) -> OutputCost:
    """Return the cost of GPU hours: kWh = gpu_hours x watts / 1000; USD = gpu_hours x rate + kWh x price."""
    kwh = gpu_hours * running.watts / 1000
    return OutputCost(flops, gpu_hours, kwh, gpu_hours * running.usd_per_hour + kwh * running.usd_per_kwh)


def cost_of_flops(flops: float, running: Running) -> OutputCost:
    """Return the cost of FLOPs: gpu_hours = FLOPs / rate / 3600."""
    return cost_of(flops / running.flops_per_s / SECONDS_PER_HOUR, flops, running)


def per_minute(video: OutputCost, video_s: float) -> OutputCost:
    """Return the cost of a minute of video made of videos of `video_s` seconds: everything x 60 / video_s."""
    times = 60.0 / video_s
    return OutputCost(video.flops * times, video.gpu_hours * times, video.kwh * times, video.usd * times)


def minutes_per_gpu_hour(minute: OutputCost) -> float:
    """Return the minutes of video that one GPU makes per hour: 1 / GPU-hours per minute."""
    return 1.0 / minute.gpu_hours


@dataclass(frozen=True)
class Demand:
    """Daily demand for finished video, and how uneven and wasteful it is."""

    minutes_per_day: float
    drafts: float = 1.0  # videos generated per video that is kept
    peak_factor: float = 1.0  # load of the busiest hour divided by the mean hour
    utilisation: float = 1.0  # share of the estimated speed that a GPU reaches in service


@dataclass(frozen=True)
class Fleet:
    """GPUs needed at the mean hour (if none is idle) and at the busiest hour; energy and cost per day."""

    gpus_at_mean: float
    gpus: int
    kwh_per_day: float
    usd_per_day: float


def fleet(demand: Demand, minutes_per_gpu_hour: float, running: Running) -> Fleet:
    """Size a fleet: GPUs = minutes per day / (24 x minutes per GPU-hour) x drafts x peak / utilisation, rounded up.

    All GPUs are paid for all day; electricity is used only while they work.
    """
    mean = demand.minutes_per_day / (HOURS_PER_DAY * minutes_per_gpu_hour)
    worked = mean * demand.drafts / demand.utilisation
    gpus = math.ceil(worked * demand.peak_factor - 1e-9)
    kwh = worked * HOURS_PER_DAY * running.watts / 1000
    return Fleet(mean, gpus, kwh, gpus * HOURS_PER_DAY * running.usd_per_hour + kwh * running.usd_per_kwh)


def gpu_months(flops: float, flops_per_s: float) -> float:
    """Return the number of GPUs that compute `flops` in a month of 30 days."""
    return flops / (flops_per_s * SECONDS_PER_HOUR * HOURS_PER_MONTH)


def outputs_to_break_even(training_flops: float, flops_per_output: float) -> float:
    """Return after how many outputs (images, minutes of video) inference has used as much compute as training."""
    return training_flops / flops_per_output
