"""What videos cost: FLOPs to GPU time, energy, money, fleets, and training against inference.

Arithmetic only. FLOPs come from the cost functions or from a document; docs/estimate.md shows every formula with its
source and the published figures that it reproduces.
"""

import math
from dataclasses import dataclass

SECONDS_PER_HOUR, HOURS_PER_DAY, DAYS_PER_MONTH = 3600.0, 24.0, 30.0
HOURS_PER_MONTH = HOURS_PER_DAY * DAYS_PER_MONTH


@dataclass(frozen=True)
class Running:
    """What one GPU of a machine at work costs."""

    flops_per_s: float  # that it reaches, not its peak
    watts: float  # drawn for it at the wall, its share of the machine and its cooling included
    usd_per_hour: float  # without electricity: rent, or the purchase spread over its life
    usd_per_kwh: float

    @property
    def usd_per_hour_with_power(self) -> float:
        return self.usd_per_hour + self.watts / 1000 * self.usd_per_kwh


@dataclass(frozen=True)
class OutputCost:
    """One video, or one minute of video."""

    flops: float
    gpu_hours: float
    kwh: float
    usd: float


def flops_of_steps(flops_per_step: float, steps: int) -> float:
    """FLOPs of one denoised output: steps x FLOPs a step. One step is one forward pass of all guidance rows."""
    return flops_per_step * steps


def cost_of(gpu_hours: float, flops: float, running: Running) -> OutputCost:
    """gpu_hours -> kWh = gpu_hours x watts / 1000; USD = gpu_hours x rate + kWh x price."""
    kwh = gpu_hours * running.watts / 1000
    return OutputCost(flops, gpu_hours, kwh, gpu_hours * running.usd_per_hour + kwh * running.usd_per_kwh)


def cost_of_flops(flops: float, running: Running) -> OutputCost:
    """The same where only FLOPs are known: gpu_hours = FLOPs / rate / 3600."""
    return cost_of(flops / running.flops_per_s / SECONDS_PER_HOUR, flops, running)


def per_minute(video: OutputCost, video_s: float) -> OutputCost:
    """A minute of video that is made in pieces of `video_s` seconds: everything x 60 / video_s."""
    times = 60.0 / video_s
    return OutputCost(video.flops * times, video.gpu_hours * times, video.kwh * times, video.usd * times)


def minutes_per_gpu_hour(minute: OutputCost) -> float:
    """Minutes of video that one GPU makes in an hour: 1 / GPU-hours a minute."""
    return 1.0 / minute.gpu_hours


@dataclass(frozen=True)
class Demand:
    """Finished video a day, and how unevenly and wastefully it is asked for."""

    minutes_per_day: float
    drafts: float = 1.0  # videos made for each that is kept
    peak_factor: float = 1.0  # the busiest hour over the mean hour
    utilisation: float = 1.0  # share of its reckoned speed that a GPU in service reaches


@dataclass(frozen=True)
class Fleet:
    """GPUs at the mean hour, if none was idle, and those that the busiest hour needs; energy and money of a day."""

    gpus_at_mean: float
    gpus: int
    kwh_per_day: float
    usd_per_day: float


def fleet(demand: Demand, minutes_per_gpu_hour: float, running: Running) -> Fleet:
    """GPUs = minutes a day / (24 x minutes a GPU-hour) x drafts x peak / utilisation, rounded up.

    All of them are paid for all day; electricity is drawn for the hours that are worked.
    """
    mean = demand.minutes_per_day / (HOURS_PER_DAY * minutes_per_gpu_hour)
    worked = mean * demand.drafts / demand.utilisation
    gpus = math.ceil(worked * demand.peak_factor - 1e-9)
    kwh = worked * HOURS_PER_DAY * running.watts / 1000
    return Fleet(mean, gpus, kwh, gpus * HOURS_PER_DAY * running.usd_per_hour + kwh * running.usd_per_kwh)


def scaled_training_flops(base_flops: float, model: float, data: float, frames: float, video_share: float) -> float:
    """Training compute of a larger model, from that of a known one: base x model x data x (frames x video share).

    Factorial Funds' extrapolation from DiT to Sora. The still images of the data are not counted, and attention is
    taken as linear in the frames.
    """
    return base_flops * model * data * frames * video_share


def gpu_months(flops: float, flops_per_s: float) -> float:
    """GPUs that do `flops` in a month of 30 days."""
    return flops / (flops_per_s * SECONDS_PER_HOUR * HOURS_PER_MONTH)


def outputs_to_break_even(training_flops: float, flops_per_output: float) -> float:
    """Outputs (images, minutes of video) after which inference has used more compute than training did."""
    return training_flops / flops_per_output
